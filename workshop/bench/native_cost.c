// SPDX-License-Identifier: GPL-2.0
/*
 * What walks, fork and exit take on a real CPU: the first process of User-mode Linux, which
 * executes the kernel's code natively. There a system call costs microseconds and a page
 * fault tens of them, as the host has to do something for it. So what is measured stays in
 * the kernel: one system call for many walks, less one that walks for nothing; and fork of
 * VMAs that had memory and have none now. Nanoseconds.
 */
#include "cost.h"

#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>

#define PAGES	512L
#define TIMES	15

/* So much of the bitmap is written at once: it takes time to pass over what is not set. */
#define WRITE	256

static uint64_t pfns[PAGES];
static unsigned char bits[WRITE], nothing[WRITE];
static char *cache;	/* twice what the CPU has */
static long cache_size;

static int reached(uint64_t first, uint64_t pfn)
{
	return pfn >= first && pfn - first < WRITE * 8;
}

/* Bits for the pages that one write can reach.  Returns how many they are. */
static int choose(uint64_t *word, size_t *size, int nr)
{
	int most = 0;

	for (int i = 0; i < nr; i++) {
		uint64_t first = pfns[i] / 64 * 64;
		int count = 0;

		for (int j = 0; j < nr; j++)
			count += reached(first, pfns[j]);
		if (count > most) {
			most = count;
			*word = first / 64;
		}
	}
	if (most < nr / 4)
		errx(1, "the pages are too far apart");

	memset(bits, 0, sizeof(bits));
	*size = 0;
	for (int i = 0; i < nr; i++) {
		const size_t at = pfns[i] / 64 - *word;

		if (!reached(*word * 64, pfns[i]))
			continue;
		((uint64_t *)bits)[at] |= 1ULL << pfns[i] % 64;
		if (at * 8 + 8 > *size)
			*size = at * 8 + 8;
	}
	return most;
}

static int bitmap(void)
{
	static int fd = -1;

	if (fd < 0)
		fd = open("/sys/kernel/mm/page_idle/bitmap", O_RDWR);
	if (fd < 0)
		err(1, "page_idle");
	return fd;
}

static long mark(const void *which, size_t size, uint64_t word)
{
	const int fd = bitmap();
	const long start = now();

	if (pwrite(fd, which, size, word * 8) != (ssize_t)size)
		errx(1, "page_idle does not take %zu bytes at %lu", size, (unsigned long)word * 8);
	return now() - start;
}

/* A page that was not walked is not idle. */
static void see_marked(size_t size, uint64_t word)
{
	unsigned char seen[WRITE];

	if (pread(bitmap(), seen, size, word * 8) != (ssize_t)size)
		errx(1, "page_idle cannot be read");
	for (size_t i = 0; i < size; i++)
		if ((seen[i] & bits[i]) != bits[i])
			errx(1, "a page was not walked");
}

static void find_pages(char *p, long nr)
{
	drain_lru();
	for (long i = 0; i < nr; i++)
		pfns[i] = pfn_of(p + i * PAGE);
}

static void evict(void)
{
	for (long i = 0; i < cache_size; i += 64)
		cache[i]++;
}

static void print_row(const char *what, int nr_children, int nr_vmas, const char *cached, long cost)
{
	char text[128];

	snprintf(text, sizeof(text), what, nr_children);
	if (nr_vmas)
		snprintf(text + strlen(text), sizeof(text) - strlen(text), ", %d VMA%s%s", nr_vmas,
			 nr_vmas > 1 ? "s" : "", cached);
	print(text, cost);
}

static int compare(const void *a, const void *b)
{
	const long x = *(const long *)a, y = *(const long *)b;

	return (x > y) - (x < y);
}

/* A walk for each of the pages; then for one whose mappings are in no cache. */
static void walks(char *p, const char *what, int nr_children, int nr_vmas, int and_cold)
{
	long best = LONG_MAX, idle = LONG_MAX, cold[TIMES];
	uint64_t word;
	size_t size;
	int nr;

	find_pages(p, PAGES);
	nr = choose(&word, &size, PAGES);
	for (int i = 0; i < TIMES; i++) {
		keep_best(&best, mark(bits, size, word));
		keep_best(&idle, mark(nothing, size, word));
	}
	see_marked(size, word);
	print_row(what, nr_children, nr_vmas, "", (best - idle) / nr);
	if (!and_cold)
		return;

	for (int i = 0; i < TIMES; i++) {
		pfns[0] = pfn_of(p + i * (PAGES / TIMES) * PAGE);
		choose(&word, &size, 1);
		evict();
		cold[i] = mark(bits, size, word);
		see_marked(size, word);
		evict();
		cold[i] -= mark(nothing, size, word);
	}
	qsort(cold, TIMES, sizeof(*cold), compare);
	print_row(what, nr_children, nr_vmas, ", not in the caches", cold[TIMES / 2]);
}

static char *map_in(int nr_vmas)
{
	char *p = map(PAGES);

	if (nr_vmas > 1)
		split_apart(p, nr_vmas, PAGES / nr_vmas);
	touch(p, 0, PAGES);
	return p;
}

static void shared(int nr_children, int nr_vmas)
{
	char *p = map_in(nr_vmas);
	pid_t pids[NR];

	start_children(pids, nr_children, begin_nothing, p);
	walks(p, "walk, %d children share the page", nr_children, nr_vmas, 1);
	end_children(pids, nr_children);
	munmap(p, PAGES * PAGE);
}

static void copy_all(char *p, int i)
{
	(void)i;
	touch(p, 0, PAGES);
}

static void copied(int nr_children)
{
	char *p = map_in(1);
	pid_t pids[NR];

	start_children(pids, nr_children, copy_all, p);
	touch(p, 0, PAGES);
	walks(p, "walk, %d children have copies", nr_children, 1, 0);
	end_children(pids, nr_children);
	munmap(p, PAGES * PAGE);
}

static void alone(int other_vmas)
{
	char *others = map(2 * NR), *p = map_in(1);

	split_apart(others, other_vmas, 1);
	touch(others, 0, other_vmas);
	walks(p, other_vmas ? "walk, no children, 1000 VMAs" : "walk, no children, 1 VMA", 0, 0, 0);
	munmap(others, 2 * NR * PAGE);
	munmap(p, PAGES * PAGE);
}

static struct cost best_fork_and_exit(void)
{
	struct cost best = { LONG_MAX, LONG_MAX };

	for (int i = 0; i < TIMES; i++) {
		struct cost cost = fork_and_exit();

		keep_best(&best.fork, cost.fork);
		keep_best(&best.exit, cost.exit);
	}
	return best;
}

static void print_forks(const char *which, struct cost empty)
{
	struct cost best = best_fork_and_exit();
	char what[96];

	snprintf(what, sizeof(what), "fork, for each empty VMA%s", which);
	print(what, (best.fork - empty.fork) / NR);
	snprintf(what, sizeof(what), "exit, for each empty VMA%s", which);
	print(what, (best.exit - empty.exit) / NR);
}

/* Of a process that is so many forks away from the one that has touched the memory */
static void at_depth(int depth, struct cost empty)
{
	char which[32];

	if (!is_descendant(depth))
		return;
	snprintf(which, sizeof(which), ", at depth %d", depth);
	print_forks(which, empty);
	if (depth)
		_exit(0);
}

static void forks(void)
{
	struct cost empty = best_fork_and_exit();
	char *p = map_apart();

	print_forks(" that was never touched", empty);
	/* Present pages would have to be write-protected, which is the host's work. */
	touch(p, 0, NR);
	if (madvise(p, NR * PAGE, MADV_DONTNEED))
		err(1, "madvise");
	at_depth(0, empty);
	at_depth(1, empty);
	at_depth(10, empty);
	munmap(p, NR * PAGE);
}

static void measure(void)
{
	static const int children[] = { 10, 100, 500 };

	forks();
	alone(0);
	alone(NR);
	cache_size = 2 * sysconf(_SC_LEVEL3_CACHE_SIZE);
	if (cache_size < 64L << 20)
		cache_size = 64L << 20;
	cache = map(cache_size / PAGE);
	madvise(cache, cache_size, MADV_DONTFORK);
	for (int i = 0; i < 3; i++) {
		shared(children[i], 1);
		shared(children[i], 256);
	}
	copied(100);
}

int main(void)
{
	mkdir("/proc", 0755);
	mkdir("/sys", 0755);
	if (mount("none", "/proc", "proc", 0, NULL) || mount("none", "/sys", "sysfs", 0, NULL))
		err(1, "mount");
	puts("bench: begin");
	if (!fork()) {
		measure();
		puts("bench: end");
		_exit(0);
	}
	wait(NULL);
	reboot(RB_POWER_OFF);
	return 1;
}
