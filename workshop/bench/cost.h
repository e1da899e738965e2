/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the programs that measure share. They print a number and what it is on each line;
 * the cheapest of some rounds, as timer interrupts only add.
 */
#ifndef COST_H
#define COST_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <err.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE	4096L
#define NR	1000
#define ROUNDS	5

static inline long now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000L + ts.tv_nsec;
}

static inline void keep_best(long *best, long cost)
{
	if (cost < *best)
		*best = cost;
}

static inline void print(const char *what, long cost)
{
	printf("%ld %s\n", cost, what);
	fflush(stdout);
}

static inline char *map(long nr_pages)
{
	char *p = mmap(NULL, nr_pages * PAGE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		err(1, "mmap");
	return p;
}

/* What differs in protection does not merge: so many VMAs of so many pages each */
static inline void split_apart(char *p, long nr, long nr_pages)
{
	for (long i = 0; i < nr; i += 2)
		if (mprotect(p + i * nr_pages * PAGE, nr_pages * PAGE, PROT_READ | PROT_WRITE | PROT_EXEC))
			err(1, "mprotect");
}

static inline char *map_apart(void)
{
	char *p = map(NR);

	split_apart(p, NR, 1);
	return p;
}

static inline void touch(char *p, long first, long nr)
{
	for (long i = first; i < nr; i++)
		p[i * PAGE] = 1;
}

static inline uint64_t pfn_of(const char *p)
{
	int fd = open("/proc/self/pagemap", O_RDONLY);
	uint64_t entry;

	if (fd < 0 || pread(fd, &entry, 8, (uintptr_t)p / PAGE * 8) != 8)
		err(1, "pagemap");
	close(fd);
	entry &= (1ULL << 55) - 1;
	if (!entry)
		errx(1, "no page");
	return entry;
}

/* Marking a page idle is a walk over its mappings, and little else. */
static inline long walk(uint64_t pfn, int rounds)
{
	int fd = open("/sys/kernel/mm/page_idle/bitmap", O_RDWR);
	uint64_t bit = 1ULL << pfn % 64, seen;
	long best = LONG_MAX;

	for (int i = 0; i < rounds; i++) {
		long start = now();

		if (pwrite(fd, &bit, 8, pfn / 64 * 8) != 8)
			err(1, "page_idle");
		keep_best(&best, now() - start);
	}
	if (pread(fd, &seen, 8, pfn / 64 * 8) != 8 || !(seen & bit))
		errx(1, "the page was not walked");
	close(fd);
	return best;
}

/* One way to the other node, and back. */
static inline long migrate(char *p)
{
	long best = LONG_MAX;

	for (int i = 0; i < 2 * ROUNDS; i++) {
		int node = !(i % 2), status;
		void *page = p;
		long start = now();

		if (syscall(SYS_move_pages, 0, 1UL, &page, &node, &status, /* all */ 4))
			err(1, "move_pages");
		keep_best(&best, now() - start);
		if (status != node)
			errx(1, "page not moved: %d", status);
	}
	return best;
}

static inline void write_to(const char *path, const char *what)
{
	int fd = open(path, O_WRONLY);

	if (fd < 0 || write(fd, what, strlen(what)) < 0)
		err(1, "%s", path);
	close(fd);
}

/* Pages that have just been faulted in are on no LRU list yet. */
static inline void drain_lru(void)
{
	write_to("/proc/sys/vm/drop_caches", "1");
}

/* Children that each do something to the memory, and then wait until they are ended */
static inline void start_children(pid_t *pids, int nr, void (*begin)(char *p, int i), char *p)
{
	int up[2];
	char c;

	if (pipe(up))
		err(1, "pipe");
	for (int i = 0; i < nr; i++) {
		pids[i] = fork();
		if (pids[i] < 0)
			err(1, "fork");
		if (!pids[i]) {
			begin(p, i);
			if (write(up[1], "", 1) != 1)
				err(1, "write");
			pause();
			_exit(0);
		}
		if (read(up[0], &c, 1) != 1)
			err(1, "read");
	}
	close(up[0]);
	close(up[1]);
}

static inline void end_children(const pid_t *pids, int nr)
{
	for (int i = 0; i < nr; i++) {
		kill(pids[i], SIGKILL);
		waitpid(pids[i], NULL, 0);
	}
}

static inline void begin_nothing(char *p, int i)
{
	(void)p;
	(void)i;
}

struct cost {
	long fork, exit;
};

/* A child that waits until its fork has been measured, and then exits. */
static inline struct cost fork_and_exit(void)
{
	struct cost best = { LONG_MAX, LONG_MAX };

	for (int i = 0; i < ROUNDS; i++) {
		long start;
		int go[2];
		char c;
		pid_t pid;

		if (pipe(go))
			err(1, "pipe");
		start = now();
		pid = fork();
		if (!pid)
			_exit(read(go[0], &c, 1) != 1);
		if (pid < 0)
			err(1, "fork");
		keep_best(&best.fork, now() - start);

		usleep(1000);
		start = now();
		if (write(go[1], "", 1) != 1)
			err(1, "write");
		waitpid(pid, NULL, 0);
		keep_best(&best.exit, now() - start);

		close(go[0]);
		close(go[1]);
	}
	return best;
}

/*
 * False in this process, once a descendant that is so many forks away has ended; true in
 * that descendant, which has to end by _exit(0).  With depth 0 that is this process.
 */
static inline int is_descendant(int depth)
{
	for (int generation = 0; generation < depth; generation++) {
		pid_t pid = fork();
		int status;

		if (pid < 0)
			err(1, "fork");
		if (pid) {
			if (waitpid(pid, &status, 0) != pid || status)
				errx(1, "a child failed");
			if (generation)
				_exit(0);
			return 0;
		}
	}
	return 1;
}

#endif
