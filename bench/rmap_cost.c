// SPDX-License-Identifier: GPL-2.0
/*
 * What fork, exit and faults cost with many VMAs that have anonymous memory.
 *
 * Made for a guest whose clock counts instructions. Prints a number and what it
 * is on each line; the cheapest of some rounds, as timer interrupts only add.
 */
#define _GNU_SOURCE
#include <err.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE	4096L
#define NR	1000
#define ROUNDS	5

struct cost {
	long fork, exit;
};

static long now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000L + ts.tv_nsec;
}

static char *map(long nr_pages)
{
	char *p = mmap(NULL, nr_pages * PAGE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		err(1, "mmap");
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
	struct cost cost, best = { 0, 0 };

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
		cost.fork = now() - start;

		usleep(1000);
		start = now();
		if (write(go[1], "", 1) != 1)
			err(1, "write");
		waitpid(pid, NULL, 0);
		cost.exit = now() - start;

		close(go[0]);
		close(go[1]);
		if (!i || cost.fork < best.fork)
			best.fork = cost.fork;
		if (!i || cost.exit < best.exit)
			best.exit = cost.exit;
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

int main(void)
{
	struct cost empty = fork_and_exit();
	long start;
	char *p;

	print("fork of a process with nothing", empty.fork);
	print("exit of a process with nothing", empty.exit);

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

	/* Of one page each: what differs in protection does not merge. */
	p = map(NR);
	for (int i = 0; i < NR; i += 2)
		mprotect(p + i * PAGE, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC);
	p[0] = 1;
	start = now();
	touch(p, 1);
	print("first touch of a VMA", (now() - start) / (NR - 1));

	at_depth(0, empty);
	at_depth(10, empty);
	return 0;
}
