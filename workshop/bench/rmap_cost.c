// SPDX-License-Identifier: GPL-2.0
/*
 * What fork, exit and faults cost with many VMAs that have anonymous memory, and
 * what it costs to walk over the mappings of a page.
 *
 * Made for a guest whose clock counts instructions.
 */
#include "cost.h"

#define HUGE	(2L << 20)

static void at_depth(int depth, struct cost empty)
{
	struct cost cost;
	char what[64];

	if (!is_descendant(depth))
		return;
	cost = fork_and_exit();
	snprintf(what, sizeof(what), "fork, for each VMA, at depth %d", depth);
	print(what, (cost.fork - empty.fork) / NR);
	snprintf(what, sizeof(what), "exit, for each VMA, at depth %d", depth);
	print(what, (cost.exit - empty.exit) / NR);
	if (depth)
		_exit(0);
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

	touch(p, 0, NR);
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
	touch(p, 0, NR);
	munmap(p, NR * PAGE);

	p = map(NR);
	p[0] = 1;
	start = now();
	touch(p, 1, NR);
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
	touch(p, 1, NR);
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
