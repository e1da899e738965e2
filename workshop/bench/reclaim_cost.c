// SPDX-License-Identifier: GPL-2.0
/*
 * What reclaim, swap-in and the migration of a KSM page cost, if many processes have
 * been forked.
 *
 * Made for a guest whose clock counts instructions, with swap and cgroup v2.
 */
#include "cost.h"

#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/swap.h>


#define PAGES	256		/* in one go */
#define SPLITS	20000L
#define GROUP	"/group"

static long vmstat(const char *name)
{
	char line[128];
	long value = -1;
	FILE *f = fopen("/proc/vmstat", "r");

	while (f && fgets(line, sizeof(line), f)) {
		size_t length = strlen(name);

		if (!strncmp(line, name, length) && line[length] == ' ')
			value = atol(line + length);
	}
	if (!f || value < 0)
		errx(1, "vmstat has no %s", name);
	fclose(f);
	return value;
}

static long number_in(const char *path)
{
	char text[32] = "";
	int fd = open(path, O_RDONLY);

	if (fd < 0 || read(fd, text, sizeof(text) - 1) <= 0)
		err(1, "%s", path);
	close(fd);
	return atol(text);
}

/* A process in a cgroup of its own, so that nothing else is reclaimed */
static void in_group(void (*measure)(int), int arg)
{
	int status;
	pid_t pid;

	if (mkdir(GROUP "/measured", 0755))
		err(1, "mkdir");
	pid = fork();
	if (pid < 0)
		err(1, "fork");
	if (!pid) {
		write_to(GROUP "/measured/cgroup.procs", "0");
		measure(arg);
		_exit(0);
	}
	waitpid(pid, &status, 0);
	if (status)
		errx(1, "what was measured failed: %x", status);
	while (rmdir(GROUP "/measured"))
		usleep(1000);
}

/* The cost of each page that goes to swap; what was referenced has been seen to be, before. */
static long reclaim(long nr_pages)
{
	long pages = vmstat("pswpout"), cost;
	char amount[32];
	int fd = open(GROUP "/measured/memory.reclaim", O_WRONLY), length;

	length = snprintf(amount, sizeof(amount), "%ld", nr_pages * PAGE);
	cost = now();
	if (write(fd, amount, length) != length)
		warn("memory.reclaim");
	cost = now() - cost;
	close(fd);
	pages = vmstat("pswpout") - pages;
	if (pages < nr_pages / 2)
		errx(1, "only %ld pages of %ld were reclaimed", pages, nr_pages);
	return cost / pages;
}

static void forget_references(char *p, long nr_pages)
{
	for (long i = 0; i < nr_pages; i++)
		walk(pfn_of(p + i * PAGE), 1);
}

static void shared(int nr_children)
{
	char *p = map(PAGES), what[96];
	pid_t pids[NR];

	touch(p, 0, PAGES);
	start_children(pids, nr_children, begin_nothing, p);
	drain_lru();
	forget_references(p, PAGES);
	snprintf(what, sizeof(what), "reclaim of a page that %d children share", nr_children);
	print(what, reclaim(PAGES / 2));
	end_children(pids, nr_children);
}

static void copy_all(char *p, int i)
{
	(void)i;
	touch(p, 0, NR);
}

/* In 2010 each page of each child was looked for in all children. */
static void copied(int nr_children)
{
	char *p = map(NR);
	pid_t pids[NR];

	touch(p, 0, NR);
	start_children(pids, nr_children, copy_all, p);
	drain_lru();
	/* So many were referenced that the first reclaim only finds that out. */
	reclaim(NR);
	print("reclaim of a page, 1000 children have copies of 1000", reclaim(16 * NR));
	end_children(pids, nr_children);
}

static void swap_own(char *p, int i)
{
	long in = LONG_MAX, out = LONG_MAX;

	if (i != NR / 2)
		return;
	p = map(PAGES);
	touch(p, 0, PAGES);
	drain_lru();
	for (int round = 0; round < ROUNDS; round++) {
		long start = now();

		if (madvise(p, PAGES * PAGE, MADV_PAGEOUT))
			err(1, "madvise");
		keep_best(&out, now() - start);
		start = now();
		touch(p, 0, PAGES);
		keep_best(&in, now() - start);
	}
	print("page-out of a child's own page", out / PAGES);
	print("swap-in of a child's own page", in / PAGES);
}

static void own(int nr_children)
{
	char *p = map(PAGES);
	pid_t pids[NR];

	touch(p, 0, PAGES);
	start_children(pids, nr_children, swap_own, p);
	end_children(pids, nr_children);
}

/* The same everywhere, until KSM has merged it */
static char *merged(long nr_pages, int apart)
{
	char *p = map(nr_pages);

	for (long i = 0; i < nr_pages; i++)
		memset(p + i * PAGE, 'k', PAGE);
	if (apart)
		split_apart(p, nr_pages, 1);
	if (madvise(p, nr_pages * PAGE, MADV_MERGEABLE))
		err(1, "madvise");
	write_to("/sys/kernel/mm/ksm/run", "2");
	write_to("/sys/kernel/mm/ksm/max_page_sharing", "100000");
	write_to("/sys/kernel/mm/ksm/pages_to_scan", "100000");
	write_to("/sys/kernel/mm/ksm/sleep_millisecs", "1");
	write_to("/sys/kernel/mm/ksm/run", "1");
	while (number_in("/sys/kernel/mm/ksm/pages_sharing") < nr_pages - 1)
		usleep(10000);
	write_to("/sys/kernel/mm/ksm/run", "0");
	drain_lru();
	return p;
}

static void merged_in_splits(int unused)
{
	(void)unused;
	print("migration of a KSM page in 20000 VMAs", migrate(merged(SPLITS, 1)));
	write_to("/sys/kernel/mm/ksm/run", "2");
}

/* In memory that the children do not have */
static void merged_beside(int nr_children)
{
	pid_t pids[NR];
	char what[96];

	start_children(pids, nr_children, begin_nothing, NULL);
	snprintf(what, sizeof(what), "migration of a KSM page, 256 times here, not in %d children", nr_children);
	print(what, migrate(merged(PAGES, 0)));
	write_to("/sys/kernel/mm/ksm/run", "2");
	end_children(pids, nr_children);
}

int main(void)
{
	mkdir(GROUP, 0755);
	if (mount("none", GROUP, "cgroup2", 0, NULL))
		err(1, "cgroup2");
	write_to(GROUP "/cgroup.subtree_control", "+memory");

	in_group(shared, 0);
	in_group(shared, 10);
	in_group(shared, 100);
	in_group(shared, NR);
	in_group(copied, NR);
	in_group(own, NR);
	in_group(merged_in_splits, 0);
	in_group(merged_beside, 0);
	in_group(merged_beside, NR);
	return 0;
}
