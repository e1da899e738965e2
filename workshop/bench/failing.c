// SPDX-License-Identifier: GPL-2.0
/*
 * Which allocations that fail make an operation on anonymous memory fail.
 *
 * Does each operation again and again, with the first of its allocations failing, then
 * the second, and so on until it has none that late. Prints for each operation how many
 * allocations it has, and how many of them it fails without:
 *
 *	NAME ALLOCATIONS FATAL
 *
 * That is the most of some rounds, as one more or less comes from a cache.
 *
 * Needs failslab and fail_page_alloc. An operation that fails must fail with ENOMEM, or
 * where it touches memory with EFAULT, and leaves the memory as it was.
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/mempolicy.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE	4096UL
#define NR	16
#define SIZE	(NR * PAGE)
#define HUGE	(2UL << 20)
#define PLACE	((char *)(1UL << 40))
#define OTHER	((char *)(2UL << 40))
#define RW	(PROT_READ | PROT_WRITE)
#define ROUNDS	5
#define MOVE	(MREMAP_MAYMOVE | MREMAP_FIXED)

static int fail_nth;
static int memory;	/* this process's */
static pid_t partner;	/* shares the memory */

static void wait_for(pid_t pid)
{
	int status;

	if (waitpid(pid, &status, 0) != pid || status)
		errx(1, "a child ended with %#x", status);
}

static void end_partner(void)
{
	if (partner > 0) {
		kill(partner, SIGKILL);
		waitpid(partner, NULL, 0);
	}
	partner = 0;
}

/* Before each time: what the operation begins with. Nothing fails in here. */
static void have(char *at, size_t size, int more)
{
	if (mmap(at, size, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | more, -1, 0) != at)
		err(1, "mmap");
}

static void have_touched(char *at)
{
	have(at, SIZE, 0);
	memset(at, 'x', SIZE);
}

static void fresh(void) { have(PLACE, SIZE, 0); }
static void touched(void) { have_touched(PLACE); }

static void moved(void)
{
	have_touched(OTHER);
	munmap(PLACE, SIZE);
	if (mremap(OTHER, SIZE, SIZE, MOVE, PLACE) != PLACE)
		err(1, "mremap");
}

static void shared(void)
{
	touched();
	partner = fork();
	if (partner < 0)
		err(1, "fork");
	while (!partner)
		pause();
}

static void swapped(void)
{
	unsigned char present[NR] = { 1 };

	touched();
	for (int tries = 0; tries < 100 && memchr(present, 1, NR); tries++) {
		if (madvise(PLACE, SIZE, MADV_PAGEOUT) || mincore(PLACE, SIZE, present))
			err(1, "paging out");
		for (int i = 0; i < NR; i++)
			present[i] &= 1;
	}
}

static void halves(void)
{
	touched();
	if (mprotect(PLACE + SIZE / 2, SIZE / 2, PROT_READ))
		err(1, "mprotect");
}

static void file(void)
{
	int fd = memfd_create("failing", 0);

	if (fd < 0 || ftruncate(fd, SIZE) ||
	    mmap(PLACE, SIZE, RW, MAP_PRIVATE | MAP_FIXED, fd, 0) != PLACE)
		err(1, "a file");
	close(fd);
	/* Its pages are there, those of this process are not. */
	for (int i = 0; i < NR; i++)
		*(volatile char *)(PLACE + i * PAGE);
}

static void huge(void)
{
	have(PLACE, 2 * HUGE, 0);
	madvise(PLACE, 2 * HUGE, MADV_HUGEPAGE);
}

static void hugetlb(void) { have(PLACE, HUGE, MAP_HUGETLB); }

/* What fails as errno says */
static int populate(size_t size, int how) { return madvise(PLACE, size, how); }
static int writes(void) { return populate(SIZE, MADV_POPULATE_WRITE); }
static int reads(void) { return populate(SIZE, MADV_POPULATE_READ); }
static int writes_huge(void) { return populate(HUGE, MADV_POPULATE_WRITE); }

static int forks(void)
{
	pid_t pid = fork();

	if (!pid)
		_exit(0);
	if (pid > 0)
		wait_for(pid);
	return pid < 0 ? -1 : 0;
}

static int protects(void) { return mprotect(PLACE + 4 * PAGE, PAGE, PROT_READ); }
static int protects_all(void) { return mprotect(PLACE, SIZE, PROT_READ); }
static int unprotects(void) { return mprotect(PLACE + SIZE / 2, SIZE / 2, RW); }
static int advises(void) { return madvise(PLACE + 4 * PAGE, PAGE, MADV_SEQUENTIAL); }
static int locks(void) { return mlock(PLACE + 4 * PAGE, PAGE); }
static int unmaps(void) { return munmap(PLACE, SIZE); }
static int unmaps_part(void) { return munmap(PLACE + 4 * PAGE, PAGE); }

static int binds(void)
{
	unsigned long nodes = 1;

	return syscall(SYS_mbind, PLACE + 4 * PAGE, PAGE, MPOL_BIND, &nodes, 8, 0);
}

static int maps_over(void)
{
	return mmap(PLACE + 4 * PAGE, PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
		    0) == MAP_FAILED ? -1 : 0;
}

static int maps_beside(void)
{
	return mmap(PLACE + SIZE, PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
		    0) == MAP_FAILED ? -1 : 0;
}

static int remap(char *from, size_t old, size_t new, int flags, char *to)
{
	return mremap(from, old, new, flags, to) == MAP_FAILED ? -1 : 0;
}

static int grows(void) { return remap(PLACE, SIZE, 2 * SIZE, 0, NULL); }
static int shrinks(void) { return remap(PLACE, SIZE, PAGE, 0, NULL); }
static int moves(void) { return remap(PLACE, SIZE, SIZE, MOVE, OTHER); }
static int moves_part(void) { return remap(PLACE + 4 * PAGE, PAGE, PAGE, MOVE, OTHER); }

static int moves_and_leaves(void)
{
	return remap(PLACE, SIZE, SIZE, MOVE | MREMAP_DONTUNMAP, OTHER);
}

static const struct operation {
	const char *name;
	void (*begins)(void);
	int (*does)(void);
} operations[] = {
	{ "first-write", fresh, writes },
	{ "first-read", fresh, reads },
	{ "first-write-to-a-private-file", file, writes },
	{ "first-write-huge", huge, writes_huge },
	{ "first-write-hugetlb", hugetlb, writes_huge },
	{ "write-to-what-a-fork-shares", shared, writes },
	{ "read-from-swap", swapped, reads },
	{ "write-to-what-is-in-swap", swapped, writes },
	{ "fork", touched, forks },
	{ "mprotect", touched, protects_all },
	{ "mprotect-that-splits", touched, protects },
	{ "mprotect-that-merges", halves, unprotects },
	{ "madvise-that-splits", touched, advises },
	{ "mbind-that-splits", touched, binds },
	{ "mlock-that-splits", touched, locks },
	{ "mmap-beside", touched, maps_beside },
	{ "mmap-over-a-part", touched, maps_over },
	{ "munmap", touched, unmaps },
	{ "munmap-of-two", halves, unmaps },
	{ "munmap-that-splits", touched, unmaps_part },
	{ "munmap-of-what-was-moved", moved, unmaps },
	{ "mremap-that-grows", touched, grows },
	{ "mremap-that-shrinks", touched, shrinks },
	{ "mremap-of-untouched", fresh, moves },
	{ "mremap", touched, moves },
	{ "mremap-of-a-part", touched, moves_part },
	{ "mremap-that-leaves-it", touched, moves_and_leaves },
	{ "mremap-back", moved, moves },
	{ "fork-of-what-was-moved", moved, forks },
	{ "mprotect-that-splits-what-was-moved", moved, protects },
	{ "munmap-that-splits-what-was-moved", moved, unmaps_part },
};

static void set_nth(unsigned int nth)
{
	char text[16];

	snprintf(text, sizeof(text), "%u", nth);
	while (pwrite(fail_nth, text, strlen(text), 0) < 0)
		if (errno != EFAULT)
			err(1, "fail-nth");
}

/* What is left to count; 0 if one failed */
static unsigned int left_of_nth(void)
{
	char text[16] = "";

	while (pread(fail_nth, text, sizeof(text) - 1, 0) < 0)
		if (errno != EFAULT)
			err(1, "fail-nth");
	return strtoul(text, NULL, 10);
}

/* It is there, and has what it began with. */
static void expect_unchanged(const struct operation *operation)
{
	const char was = operation->begins == fresh || operation->begins == file ||
			 operation->begins == huge || operation->begins == hugetlb ? 0 : 'x';
	static char is[SIZE];

	if (pread(memory, is, SIZE, (off_t)PLACE) != SIZE)
		errx(1, "%s failed, and memory has gone", operation->name);
	for (size_t i = 0; i < SIZE; i++)
		if (is[i] != was)
			errx(1, "%s failed, and memory has changed", operation->name);
}

static void clean_up(void)
{
	end_partner();
	munmap(PLACE, 2 * HUGE);
	munmap(OTHER, 2 * HUGE);
}

/* Returns whether an allocation failed. */
static bool attempt(const struct operation *operation, unsigned int nth, int *fatal)
{
	bool failed;
	int error;

	operation->begins();
	set_nth(nth);
	error = operation->does() ? errno : 0;
	failed = !left_of_nth();
	set_nth(0);

	if (error && error != ENOMEM && error != EFAULT && error != EAGAIN)
		errx(1, "%s, allocation %u: %s", operation->name, nth, strerror(error));
	if (error && !failed)
		errx(1, "%s: %s, for nothing", operation->name, strerror(error));
	if (error)
		expect_unchanged(operation);
	*fatal += error != 0;
	clean_up();
	return failed;
}

static void write_to(const char *path, const char *value)
{
	int fd = open(path, O_WRONLY);

	if (fd < 0 || write(fd, value, strlen(value)) < 0)
		err(1, "%s", path);
	close(fd);
}

int main(void)
{
	write_to("/sys/kernel/debug/failslab/ignore-gfp-wait", "N");
	write_to("/sys/kernel/debug/failslab/verbose", "0");
	write_to("/sys/kernel/debug/fail_page_alloc/ignore-gfp-wait", "N");
	write_to("/sys/kernel/debug/fail_page_alloc/ignore-gfp-highmem", "N");
	write_to("/sys/kernel/debug/fail_page_alloc/min-order", "0");
	write_to("/sys/kernel/debug/fail_page_alloc/verbose", "0");
	write_to("/proc/sys/vm/nr_hugepages", "8");
	fail_nth = open("/proc/thread-self/fail-nth", O_RDWR);
	if (fail_nth < 0)
		err(1, "fail-nth");
	memory = open("/proc/self/mem", O_RDONLY);
	if (memory < 0)
		err(1, "/proc/self/mem");

	for (unsigned int i = 0; i < sizeof(operations) / sizeof(*operations); i++) {
		unsigned int most = 0;
		int most_fatal = 0, fatal = 0;

		/* Once without, for what it leaves in caches. */
		attempt(&operations[i], 1000000, &fatal);
		for (int round = 0; round < ROUNDS; round++) {
			unsigned int nth = 1;

			for (fatal = 0; attempt(&operations[i], nth, &fatal);)
				nth++;
			if (nth - 1 > most)
				most = nth - 1;
			if (fatal > most_fatal)
				most_fatal = fatal;
		}
		printf("%s %u %d\n", operations[i].name, most, most_fatal);
		fflush(stdout);
	}
	return 0;
}
