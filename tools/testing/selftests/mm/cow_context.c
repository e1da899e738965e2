// SPDX-License-Identifier: GPL-2.0
/*
 * COW contexts: what user space can see of them.
 *
 * Contexts live and die with the fork tree: none is left behind, whatever the order of
 * forks and exits, and no line of forks collects dead ones.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
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
#define NR_GENERATIONS	100000
#define MAX_LIVE	100

/* Dead contexts that one living line of forks may keep, see COW_CONTEXT_MAX_DEPTH */
#define MAX_DEAD	32

/* What all processes of a test share */
struct shared {
	int forks;
	int live;
	int failed;
	int paused;
};

/* The number of objects of a slab cache in use, or -1 */
static long slab_objects(const char *cache)
{
	char line[256], name[64], path[128];
	long count = -1, active;
	FILE *slabinfo;
	int fd;

	/* Objects that wait in the cache for their next use would count, too. */
	snprintf(path, sizeof(path), "/sys/kernel/slab/%s/shrink", cache);
	fd = open(path, O_WRONLY);
	if (fd >= 0) {
		if (write(fd, "1", 1) != 1)
			perror(path);
		close(fd);
	}

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

/* Contexts beyond one per mm, after those freed by RCU had the time to go */
static long spare_contexts(long expected)
{
	long spare;
	int tries;

	for (tries = 0; tries < 100; tries++) {
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
	while (shared->forks < NR_GENERATIONS) {
		if (++shared->forks % (NR_GENERATIONS / 10) == 0) {
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
	struct shared *shared = self->shared;
	long most = 0;
	pid_t pid;

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

			if (spare > most)
				most = spare;
			__atomic_store_n(&shared->paused, 0, __ATOMIC_RELEASE);
		} else if (!pid) {
			usleep(1000);
		}
	}

	TH_LOG("at most %ld contexts more than mms", most);
	EXPECT_LE(most, MAX_DEAD);
	EXPECT_EQ(shared->forks, NR_GENERATIONS);
	EXPECT_EQ(shared->failed, 0);
	EXPECT_EQ(spare_contexts(0), 0);
}

TEST_HARNESS_MAIN
