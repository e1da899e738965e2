// SPDX-License-Identifier: GPL-2.0
/*
 * COW contexts: what user space can see of them.
 *
 * Contexts live and die with the fork tree: none is left behind, whatever the order of
 * forks and exits, and no line of forks collects dead ones.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "kselftest_harness.h"

#define NR_FORKS	10000
#define NR_GENERATIONS	100000	/* or what the environment says */
#define MAX_LIVE	100

/* Dead contexts that one living line of forks may keep, see COW_CONTEXT_MAX_DEPTH */
#define MAX_DEAD	32

/* What all processes of a test share */
struct shared {
	int generations;
	int forks;
	int live;
	int failed;
	int paused;
};

/* Does the cache keep freed objects in sheaves, where they count as in use? */
static bool slab_has_sheaves(const char *cache)
{
	unsigned int capacity = 0;
	char path[128];
	FILE *file;

	snprintf(path, sizeof(path), "/sys/kernel/slab/%s/sheaf_capacity", cache);
	file = fopen(path, "r");
	if (!file)
		return false;
	if (fscanf(file, "%u", &capacity) != 1)
		capacity = 0;
	fclose(file);
	return capacity;
}

/* The number of objects of a slab cache in use, or -1 */
static long slab_objects(const char *cache)
{
	char line[256], name[64];
	long count = -1, active;
	FILE *slabinfo;

	slabinfo = fopen("/proc/slabinfo", "r");
	if (!slabinfo)
		return -1;
	while (fgets(line, sizeof(line), slabinfo)) {
		if (sscanf(line, "%63s %ld", name, &active) == 2 &&
		    !strcmp(name, cache))
			count = active;
	}
	fclose(slabinfo);
	return count;
}

/*
 * An idle CPU may have kept the mm of the process that ran there last, and with
 * it the contexts of all that it was forked from: give each CPU this one's.
 */
static void visit_cpus(void)
{
	int cpu, nr_cpus = sysconf(_SC_NPROCESSORS_CONF);
	cpu_set_t all, one;

	sched_getaffinity(0, sizeof(all), &all);
	for (cpu = 0; cpu < nr_cpus; cpu++) {
		CPU_ZERO(&one);
		CPU_SET(cpu, &one);
		sched_setaffinity(0, sizeof(one), &one);
	}
	sched_setaffinity(0, sizeof(all), &all);
}

/*
 * Contexts beyond one per mm.  kfree_rcu() may take its time, some seconds, with
 * those that are dead.
 */
static long spare_contexts(long expected)
{
	long spare;
	int tries;

	for (tries = 0; tries < 200; tries++) {
		visit_cpus();
		spare = slab_objects("cow_context") - slab_objects("mm_struct");
		if (spare <= expected)
			break;
		usleep(100 * 1000);
	}
	return spare;
}

static void reap_all(void)
{
	while (waitpid(-1, NULL, 0) > 0 || errno != ECHILD)
		;
}

/*
 * Forks, and goes on in parent and child alike, each of which may exit at any time,
 * but for the last one.
 */
static void fork_and_exit(struct shared *shared, unsigned int seed)
{
	for (;;) {
		int number = __atomic_add_fetch(&shared->forks, 1, __ATOMIC_RELAXED);
		int live;

		if (number > NR_FORKS)
			break;

		live = __atomic_add_fetch(&shared->live, 1, __ATOMIC_RELAXED);
		switch (fork()) {
		case -1:
			__atomic_add_fetch(&shared->failed, 1, __ATOMIC_RELAXED);
			__atomic_sub_fetch(&shared->live, 1, __ATOMIC_RELAXED);
			continue;
		case 0:
			seed += number;
		}

		if (live > MAX_LIVE || rand_r(&seed) % 2) {
			/* With a second look, as others leave at the same time. */
			if (__atomic_sub_fetch(&shared->live, 1, __ATOMIC_RELAXED) > 0)
				_exit(0);
			__atomic_add_fetch(&shared->live, 1, __ATOMIC_RELAXED);
		}
		if (rand_r(&seed) % 4 == 0)
			usleep(rand_r(&seed) % 2000);
	}
	_exit(0);
}

FIXTURE(lifetime)
{
	struct shared *shared;
	long spare;
};

FIXTURE_SETUP(lifetime)
{
	if (slab_objects("cow_context") < 0)
		SKIP(return, "no cow_context in /proc/slabinfo");
	if (slab_has_sheaves("cow_context") || slab_has_sheaves("mm_struct"))
		SKIP(return, "needs slab_debug=F,cow_context,mm_struct to count");

	self->shared = mmap(NULL, sizeof(*self->shared), PROT_READ | PROT_WRITE,
			    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(self->shared, MAP_FAILED);
	/* Orphans come to this process. */
	ASSERT_EQ(prctl(PR_SET_CHILD_SUBREAPER, 1), 0);
	ASSERT_EQ(spare_contexts(0), 0);
}

FIXTURE_TEARDOWN(lifetime)
{
	munmap(self->shared, sizeof(*self->shared));
}

TEST_F_TIMEOUT(lifetime, forks_with_exits_in_random_order, 1800)
{
	struct shared *shared = self->shared;
	pid_t pid;

	shared->live = 1;
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid)
		fork_and_exit(shared, 1);
	reap_all();

	ASSERT_GE(shared->forks, NR_FORKS);
	ASSERT_EQ(shared->failed, 0);
	ASSERT_EQ(spare_contexts(0), 0);
}

/* Each generation ends when it has made the next one. */
static void fork_chain(struct shared *shared)
{
	while (shared->forks < shared->generations) {
		if (++shared->forks % (shared->generations / 10) == 0) {
			__atomic_store_n(&shared->paused, 1, __ATOMIC_RELEASE);
			while (__atomic_load_n(&shared->paused, __ATOMIC_ACQUIRE))
				usleep(1000);
		}
		switch (fork()) {
		case -1:
			shared->failed++;
			_exit(1);
		case 0:
			continue;
		}
		_exit(0);
	}
	_exit(0);
}

TEST_F_TIMEOUT(lifetime, chain_of_forks_is_bounded, 3600)
{
	const char *generations = getenv("NR_GENERATIONS");
	struct shared *shared = self->shared;
	long most = 0;
	pid_t pid;

	shared->generations = generations ? atoi(generations) : NR_GENERATIONS;
	ASSERT_GE(shared->generations, 10);

	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid)
		fork_chain(shared);

	for (;;) {
		pid = waitpid(-1, NULL, WNOHANG);
		if (pid < 0)
			break;
		if (__atomic_load_n(&shared->paused, __ATOMIC_ACQUIRE)) {
			long spare = spare_contexts(MAX_DEAD);

			TH_LOG("%d generations: %ld contexts more than mms",
			       shared->forks, spare);
			if (spare > most)
				most = spare;
			__atomic_store_n(&shared->paused, 0, __ATOMIC_RELEASE);
		} else if (!pid) {
			usleep(1000);
		}
	}

	EXPECT_LE(most, MAX_DEAD);
	EXPECT_EQ(shared->forks, shared->generations);
	EXPECT_EQ(shared->failed, 0);
	EXPECT_EQ(spare_contexts(0), 0);
}

TEST_HARNESS_MAIN
