// SPDX-License-Identifier: GPL-2.0
/*
 * What it costs to move memory, and what memory that was moved costs afterwards.
 *
 * Made for a guest whose clock counts instructions.
 */
#include "cost.h"

#define MANY	(1L << 18)	/* pages of 1 GB */
#define TABLE	512L		/* pages of a page table */

/* Nothing but an address: at least as many pages, where a page table begins */
static char *room_for(long nr_pages)
{
	char *p = mmap(NULL, (nr_pages + 2 * TABLE) * PAGE, PROT_NONE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED)
		err(1, "mmap");
	return (char *)(((uintptr_t)p + TABLE * PAGE - 1) & -(TABLE * PAGE));
}

static void map_at(char *at, long nr_pages)
{
	if (mmap(at, nr_pages * PAGE, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != at)
		err(1, "mmap");
}

static void move(char *from, long nr_pages, char *to, int flags)
{
	if (mremap(from, nr_pages * PAGE, nr_pages * PAGE,
		   MREMAP_MAYMOVE | MREMAP_FIXED | flags, to) != to)
		err(1, "mremap");
}

static void there_and_back(long nr_pages, long off, const char *how)
{
	char *from = room_for(nr_pages), *to = room_for(nr_pages) + off * PAGE, what[96];
	long best = LONG_MAX;

	map_at(from, nr_pages);
	touch(from, 0, nr_pages);
	for (int i = 0; i < ROUNDS; i++) {
		long start = now();

		move(from, nr_pages, to, 0);
		move(to, nr_pages, from, 0);
		keep_best(&best, now() - start);
	}
	snprintf(what, sizeof(what), "mremap of %ld pages%s, there and back", nr_pages, how);
	print(what, best);
	munmap(from, nr_pages * PAGE);
}

/* As realloc() does, with something else behind it */
static void grow(void)
{
	long best = LONG_MAX;

	for (int round = 0; round < ROUNDS; round++) {
		long pages = 1, cost = 0;
		char *p = map(pages);

		for (; pages < MANY; pages *= 2) {
			char *behind = mmap(p + pages * PAGE, PAGE, PROT_NONE,
					    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
			long start;

			p[(pages - 1) * PAGE] = 1;
			start = now();
			p = mremap(p, pages * PAGE, 2 * pages * PAGE, MREMAP_MAYMOVE);
			cost += now() - start;
			if (p == MAP_FAILED)
				err(1, "mremap");
			if (behind != MAP_FAILED)
				munmap(behind, PAGE);
		}
		keep_best(&best, cost);
		munmap(p, pages * PAGE);
	}
	print("mremap that grows to 1 GB", best);
}

/* Each array is mapped where the last one was, and has gone from when it grew. */
static void arrays(struct cost empty)
{
	char *at = room_for(1), *to = room_for(4 * NR), *last;
	long maps = 0;
	struct cost cost;

	for (int i = 0; i < NR; i++) {
		long start = now();

		map_at(at, 1);
		maps += now() - start;
		*at = 1;
		last = to + 4 * i * PAGE;
		move(at, 1, last, 0);
	}
	print("mmap where VMAs that were moved began", maps / NR);
	drain_lru();
	print("walk, 1000 arrays began at one address", walk(pfn_of(last), ROUNDS));
	print("migration, 1000 arrays began at one address", migrate(last));
	cost = fork_and_exit();
	print("fork, for each VMA that was moved", (cost.fork - empty.fork) / NR);
	print("exit, for each VMA that was moved", (cost.exit - empty.exit) / NR);
	munmap(to, 4 * NR * PAGE);
}

static char *moved_to;

/*
 * A mapping of a file has the offsets of its address, whoever else has them.  The first
 * child only shares the page: else a walk would end at the parent's mapping.
 */
static void move_away(char *p, int i)
{
	int fd = memfd_create("moved", 0);

	if (!i)
		return;
	if (fd < 0 || ftruncate(fd, PAGE))
		err(1, "memfd");
	for (int n = 0; n < NR; n++) {
		if (mmap(p, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, fd, 0) != p)
			err(1, "mmap");
		*p = 2;
		move(p, 1, moved_to + 4 * n * PAGE, 0);
	}
}

/* A walk for the page that two share goes through what a third has moved from there. */
static void moved_by_a_child(void)
{
	char *p = map(1);
	pid_t pids[2];

	moved_to = room_for(4 * NR);
	*p = 1;
	start_children(pids, 2, move_away, p);
	drain_lru();
	print("walk, a child moved 1000 VMAs from there", walk(pfn_of(p), ROUNDS));
	end_children(pids, 2);
}

int main(void)
{
	struct cost empty = fork_and_exit();

	there_and_back(1, 0, "");
	there_and_back(TABLE, 0, "");
	there_and_back(TABLE, 1, ", not aligned");
	there_and_back(MANY, 0, "");
	there_and_back(MANY, 1, ", not aligned");
	grow();
	arrays(empty);
	moved_by_a_child();
	return 0;
}
