// SPDX-License-Identifier: GPL-2.0
/*
 * Loads that several processes or threads put on the locks of the reverse map, and how much
 * they get done: contention threads|lineage|reclaim SECONDS. Made for a guest with swap and
 * cgroup v2 at /sys/fs/cgroup. It prints a number and what was done so often on each line.
 */
#include "cost.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>

#define PAGES		512L
#define LINEAGE		200
#define RECLAIMERS	4
#define LARGE		(16L * PAGES)
#define GROUP		"/sys/fs/cgroup/contention"

enum { MAPPED, MIGRATED, RECLAIMED, FORKED, NR_KINDS };

static const char *const kinds[NR_KINDS] = {
	[MAPPED] = "map, touch, protect and unmap",
	[MIGRATED] = "migration of a page",
	[RECLAIMED] = "call for reclaim",
	[FORKED] = "fork, copy and exit",
};

/* Shared by all processes */
static struct {
	volatile int end;
	unsigned long done[NR_KINDS];
} *shared;

static void done(int kind, unsigned long times)
{
	__atomic_fetch_add(&shared->done[kind], times, __ATOMIC_RELAXED);
}

static char *area;

static void *maps(void *unused)
{
	(void)unused;
	while (!shared->end) {
		char *p = map(16);

		touch(p, 0, 16);
		if (mprotect(p + 4 * PAGE, 8 * PAGE, PROT_READ) ||
		    mprotect(p + 4 * PAGE, 8 * PAGE, PROT_READ | PROT_WRITE) ||
		    munmap(p, 16 * PAGE))
			err(1, "map");
		done(MAPPED, 1);
	}
	return NULL;
}

static void *migrates(void *unused)
{
	void *pages[PAGES];
	int nodes[PAGES], status[PAGES];

	(void)unused;
	for (int round = 0; !shared->end; round++) {
		int moved = 0;

		for (long i = 0; i < PAGES; i++) {
			pages[i] = area + i * PAGE;
			nodes[i] = round % 2;
		}
		if (syscall(SYS_move_pages, 0, PAGES, pages, nodes, status, 4) < 0)
			err(1, "move_pages");
		for (long i = 0; i < PAGES; i++)
			moved += status[i] == nodes[i];
		done(MIGRATED, moved);
	}
	return NULL;
}

static void call_reclaim(const char *amount)
{
	int fd = open(GROUP "/memory.reclaim", O_WRONLY);

	if (fd < 0)
		err(1, "memory.reclaim");
	/* It fails if there is less. */
	if (write(fd, amount, strlen(amount)) >= 0)
		done(RECLAIMED, 1);
	else if (errno != EAGAIN)
		err(1, "memory.reclaim");
	close(fd);
}

static void *reclaims(void *unused)
{
	(void)unused;
	while (!shared->end) {
		call_reclaim("1M");
		touch(area, 0, PAGES);
	}
	return NULL;
}

/* In one mm, mapping and unmapping beside migration and reclaim of what others have mapped */
static void threads(void)
{
	void *(*const works[])(void *) = { maps, maps, maps, migrates, reclaims };
	pthread_t ids[5];

	area = map(PAGES);
	touch(area, 0, PAGES);
	for (int i = 0; i < 5; i++)
		if (pthread_create(&ids[i], NULL, works[i], NULL))
			errx(1, "pthread_create");
	for (int i = 0; i < 5; i++)
		pthread_join(ids[i], NULL);
}

static void end(pid_t pid)
{
	int status;

	if (waitpid(pid, &status, 0) != pid || status)
		errx(1, "a process failed");
}

static pid_t start(void (*work)(void))
{
	pid_t pid = fork();

	if (pid < 0)
		err(1, "fork");
	if (!pid) {
		work();
		_exit(0);
	}
	return pid;
}

static void copy_some(void)
{
	touch(area, 0, 16);
}

static void fork_for_ever(void)
{
	while (!shared->end) {
		end(start(copy_some));
		done(FORKED, 1);
	}
}

static void reclaim_for_ever(void)
{
	while (!shared->end)
		call_reclaim("1M");
}

/* Processes forked from one, that fork, copy and exit while their memory is reclaimed */
static void lineage(void)
{
	pid_t pids[LINEAGE];

	area = map(PAGES);
	touch(area, 0, PAGES);
	for (int i = 0; i < LINEAGE; i++)
		pids[i] = start(fork_for_ever);
	/* One among so many, it would seldom run. */
	if (setpriority(PRIO_PROCESS, 0, -20))
		err(1, "setpriority");
	reclaim_for_ever();
	for (int i = 0; i < LINEAGE; i++)
		end(pids[i]);
}

/* Others reclaim the memory of a large process, which uses it. */
static void large(void)
{
	pid_t pids[RECLAIMERS];

	for (int i = 0; i < RECLAIMERS; i++)
		pids[i] = start(reclaim_for_ever);
	area = map(LARGE);
	while (!shared->end)
		touch(area, 0, LARGE);
	for (int i = 0; i < RECLAIMERS; i++)
		end(pids[i]);
}

int main(int argc, char **argv)
{
	pid_t pid;

	if (argc != 3)
		errx(2, "usage: contention threads|lineage|reclaim SECONDS");
	shared = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED)
		err(1, "mmap");
	if (mkdir(GROUP, 0755) && errno != EEXIST)
		err(1, "mkdir");

	pid = fork();
	if (!pid) {
		write_to(GROUP "/cgroup.procs", "0");
		if (!strcmp(argv[1], "threads"))
			threads();
		else if (!strcmp(argv[1], "lineage"))
			lineage();
		else
			large();
		_exit(0);
	}
	sleep(atoi(argv[2]));
	shared->end = 1;
	end(pid);
	if (rmdir(GROUP))
		err(1, "rmdir");
	for (int kind = 0; kind < NR_KINDS; kind++)
		if (shared->done[kind])
			print(kinds[kind], shared->done[kind]);
	return 0;
}
