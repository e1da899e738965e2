// SPDX-License-Identifier: GPL-2.0
/*
 * What fork, exit and faults cost with many VMAs that have anonymous memory, and
 * what it costs to walk over the mappings of a page.
 *
 * Made for a guest whose clock counts instructions. Prints a number and what it
 * is on each line; the cheapest of some rounds, as timer interrupts only add.
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE	4096L
#define NR	1000
#define ROUNDS	5
#define HUGE	(2L << 20)

struct cost {
	long fork, exit;
};

static long now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000L + ts.tv_nsec;
}

static void keep_best(long *best, long cost)
{
	if (cost < *best)
		*best = cost;
}

static char *map(long nr_pages)
{
	char *p = mmap(NULL, nr_pages * PAGE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		err(1, "mmap");
	return p;
}

/* VMAs of one page each: what differs in protection does not merge. */
static char *map_apart(void)
{
	char *p = map(NR);

	for (int i = 0; i < NR; i += 2)
		mprotect(p + i * PAGE, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC);
	return p;
}

static void touch(char *p, int first)
{
	for (int i = first; i < NR; i++)
		p[i * PAGE] = 1;
}

static void print(const char *what, long cost)
{
	printf("%ld %s\n", cost, what);
	fflush(stdout);
}

/* A child that waits until its fork has been measured, and then exits. */
static struct cost fork_and_exit(void)
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

static void at_depth(int depth, struct cost empty)
{
	struct cost cost;
	char what[64];

	for (int generation = 0; generation < depth; generation++) {
		pid_t pid = fork();

		if (pid < 0)
			err(1, "fork");
		if (pid) {
			waitpid(pid, NULL, 0);
			if (generation)
				_exit(0);
			return;
		}
	}
	cost = fork_and_exit();
	snprintf(what, sizeof(what), "fork, for each VMA, at depth %d", depth);
	print(what, (cost.fork - empty.fork) / NR);
	snprintf(what, sizeof(what), "exit, for each VMA, at depth %d", depth);
	print(what, (cost.exit - empty.exit) / NR);
	if (depth)
		_exit(0);
}

static uint64_t pfn_of(const char *p)
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
static long walk(uint64_t pfn, int rounds)
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
static long migrate(char *p)
{
	long best = LONG_MAX;

	for (int i = 0; i < 2 * ROUNDS; i++) {
		int node = !(i % 2), status;
		void *page = p;
		long start = now();

		if (syscall(SYS_move_pages, 0, 1UL, &page, &node, &status, 2))
			err(1, "move_pages");
		keep_best(&best, now() - start);
		if (status != node)
			errx(1, "page not moved: %d", status);
	}
	return best;
}

/* Pages that have just been faulted in are on no LRU list yet. */
static void drain_lru(void)
{
	int fd = open("/proc/sys/vm/drop_caches", O_WRONLY);

	if (write(fd, "1", 1) != 1)
		err(1, "drop_caches");
	close(fd);
}

/* A huge page that children share becomes small ones. */
static long split(char *p)
{
	int fd = open("/sys/kernel/debug/split_huge_pages", O_WRONLY), length;
	char command[64];
	long start;

	length = snprintf(command, sizeof(command), "%d,%p,%p", getpid(), p, p + HUGE);
	start = now();
	if (write(fd, command, length + 1) < 0)
		err(1, "split_huge_pages");
	close(fd);
	return now() - start;
}

/* Children that each do something to the memory, and then wait until they are ended */
static void start_children(pid_t *pids, int nr, void (*begin)(char *p, int i), char *p)
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

static void end_children(const pid_t *pids, int nr)
{
	for (int i = 0; i < nr; i++) {
		kill(pids[i], SIGKILL);
		waitpid(pids[i], NULL, 0);
	}
}

static void copy_second(char *p, int i)
{
	p[PAGE] = 2;
}

static void walks(int nr_children)
{
	char *room = map(2 * HUGE / PAGE), *p = map(2), what[96];
	char *huge = (char *)(((uintptr_t)room + HUGE - 1) & -HUGE);
	pid_t pids[NR];

	if (madvise(huge, HUGE, MADV_HUGEPAGE))
		err(1, "madvise");
	/* The second page is this process's own again. */
	huge[0] = p[0] = p[PAGE] = 1;
	start_children(pids, nr_children, copy_second, p);
	p[PAGE] = 3;
	drain_lru();

	snprintf(what, sizeof(what), "walk, %d children share the page", nr_children);
	print(what, walk(pfn_of(p), ROUNDS));
	snprintf(what, sizeof(what), "walk, %d children have copies", nr_children);
	print(what, walk(pfn_of(p + PAGE), ROUNDS));
	snprintf(what, sizeof(what), "migration, %d children have copies", nr_children);
	print(what, migrate(p + PAGE));
	snprintf(what, sizeof(what), "split, %d children share the huge page", nr_children);
	print(what, split(huge));

	end_children(pids, nr_children);
	munmap(room, 2 * HUGE);
	munmap(p, 2 * PAGE);
}

static void keep_one(char *p, int i)
{
	if (i)
		munmap(p, i * PAGE);
	if (i < NR - 1)
		munmap(p + (i + 1) * PAGE, (NR - 1 - i) * PAGE);
}

/* Of many VMAs each child keeps one, and the parent none: most in the tree have nothing. */
static void kept_by_one(void)
{
	long first = LONG_MAX, again = LONG_MAX;
	char *p = map_apart();
	uint64_t pfns[ROUNDS];
	pid_t pids[NR];

	touch(p, 0);
	start_children(pids, NR, keep_one, p);
	for (int i = 0; i < ROUNDS; i++)
		pfns[i] = pfn_of(p + i * (NR / ROUNDS) * PAGE);
	munmap(p, NR * PAGE);
	drain_lru();

	for (int i = 0; i < ROUNDS; i++)
		keep_best(&first, walk(pfns[i], 1));
	for (int i = 0; i < ROUNDS; i++)
		keep_best(&again, walk(pfns[i], 1));
	print("walk, each child keeps a VMA of 1000", first);
	print("walk, each child keeps a VMA, again", again);
	end_children(pids, NR);
}

static long exec(void)
{
	long best = LONG_MAX;

	for (int i = 0; i < ROUNDS; i++) {
		long start = now();
		pid_t pid = vfork();

		if (!pid) {
			execl("/proc/self/exe", "rmap_cost", "nothing", NULL);
			_exit(1);
		}
		if (pid < 0)
			err(1, "vfork");
		waitpid(pid, NULL, 0);
		keep_best(&best, now() - start);
	}
	return best;
}

int main(int argc, char **argv)
{
	struct cost empty;
	long start;
	char *p;

	if (argc > 1)
		return 0;
	empty = fork_and_exit();

	print("fork of a process with nothing", empty.fork);
	print("exit of a process with nothing", empty.exit);
	print("vfork, exec and exit", exec());

	p = map(NR);
	touch(p, 0);
	munmap(p, NR * PAGE);

	p = map(NR);
	p[0] = 1;
	start = now();
	touch(p, 1);
	print("fault in a VMA that has memory", (now() - start) / (NR - 1));
	munmap(p, NR * PAGE);

	start = now();
	for (int i = 0; i < NR; i++) {
		p = map(1);
		/* So that it does not merge with a neighbour. */
		mprotect(p, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC);
		*p = 1;
		munmap(p, PAGE);
	}
	print("map, mprotect, touch and unmap", (now() - start) / NR);

	p = map_apart();
	p[0] = 1;
	start = now();
	touch(p, 1);
	print("first touch of a VMA", (now() - start) / (NR - 1));

	at_depth(0, empty);
	at_depth(10, empty);
	munmap(p, NR * PAGE);

	walks(0);
	walks(1);
	walks(10);
	walks(100);
	walks(300);
	walks(NR);
	kept_by_one();
	return 0;
}
