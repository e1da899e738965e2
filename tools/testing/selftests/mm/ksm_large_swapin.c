// SPDX-License-Identifier: GPL-2.0
/*
 * Memory that KSM has merged, read from swap by large folios.
 *
 * From a device that is fast, as a RAM disk or zram, a fault reads as many pages
 * as their slots follow each other. Those of KSM pages do, too, if the pages were
 * swapped out one after the other, but other mappings of these pages have an entry
 * for the same slot, at another offset or in another process. If the folio is mapped
 * there as well, a write to the one place changes the other.
 */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <fcntl.h>
#include <unistd.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "kselftest.h"
#include "hugepage_settings.h"
#include "vm_util.h"

#define NR_PAGES	128UL
#define ORDER		2

static const char group[] = "/sys/fs/cgroup/ksm_large_swapin";
static bool controls_memory;	/* before the test */
static int pagemap;

static bool try_write(const char *dir, const char *file, const char *value)
{
	char path[128];
	bool written;
	int fd;

	snprintf(path, sizeof(path), "%s/%s", dir, file);
	fd = open(path, O_WRONLY);
	if (fd < 0)
		return false;
	written = write(fd, value, strlen(value)) == (ssize_t)strlen(value);
	close(fd);
	return written;
}

static bool enter_group(void)
{
	char path[128], controllers[256];

	controls_memory = read_file("/sys/fs/cgroup/cgroup.subtree_control",
				    controllers, sizeof(controllers)) > 0 &&
			  strstr(controllers, "memory");
	try_write("/sys/fs/cgroup", "cgroup.subtree_control", "+memory");
	if (mkdir(group, 0755) || !try_write(group, "cgroup.procs", "0"))
		return false;
	snprintf(path, sizeof(path), "%s/memory.reclaim", group);
	return !access(path, W_OK);
}

static void leave_group(void)
{
	ksm_stop();
	try_write("/sys/fs/cgroup", "cgroup.procs", "0");
	rmdir(group);
	if (!controls_memory)
		try_write("/sys/fs/cgroup", "cgroup.subtree_control", "-memory");
}

static unsigned long *word(char *addr, unsigned long page)
{
	return (unsigned long *)(addr + page * psize());
}

/* Each page has contents of its own. */
static char *map_and_fill(unsigned long shift)
{
	char *addr = mmap(NULL, (NR_PAGES + (2UL << ORDER)) * psize(),
			  PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	unsigned long page;

	if (addr == MAP_FAILED)
		ksft_exit_fail_perror("mmap");
	addr = (char *)(((unsigned long)addr | ((psize() << ORDER) - 1)) + 1);
	addr += shift * psize();
	for (page = 0; page < NR_PAGES; page++)
		*word(addr, page) = page + 1;
	if (madvise(addr, NR_PAGES * psize(), MADV_MERGEABLE))
		ksft_exit_skip("needs KSM\n");
	return addr;
}

static bool all_swapped(char *addr)
{
	unsigned long page;

	for (page = 0; page < NR_PAGES; page++)
		if (!pagemap_is_swapped(pagemap, addr + page * psize()))
			return false;
	return true;
}

static unsigned long nr_same(char *a, char *b)
{
	unsigned long page, nr = 0, pfn;

	for (page = 0; page < NR_PAGES; page++) {
		pfn = pagemap_get_pfn(pagemap, a + page * psize());
		nr += pfn != -1UL &&
		      pfn == pagemap_get_pfn(pagemap, b + page * psize());
	}
	return nr;
}

static unsigned long nr_wrong(char *addr)
{
	unsigned long page, nr = 0;

	for (page = 0; page < NR_PAGES; page++)
		nr += *word(addr, page) != page + 1;
	return nr;
}

/* Twice the same memory, which is one page each to KSM, and then one slot each */
static void swap_out_merged(char *a, char *b)
{
	int tries;

	for (tries = 0; tries < 20 && nr_same(a, b) < NR_PAGES; tries++)
		if (ksm_start())
			ksft_exit_skip("needs KSM\n");
	write_num("/sys/kernel/mm/ksm/run", 0);
	if (nr_same(a, b) < NR_PAGES)
		ksft_exit_fail_msg("not merged\n");

	for (tries = 0; tries < 100 && !(all_swapped(a) && all_swapped(b)); tries++)
		try_write(group, "memory.reclaim", "8M");
	if (!all_swapped(a) || !all_swapped(b))
		ksft_exit_skip("needs swap\n");
}

int main(void)
{
	unsigned long shift, page, nr_lost = 0, nr_changed = 0;
	const char *destructive = getenv("RUN_DESTRUCTIVE");
	struct thp_settings settings;
	char *a, *b;

	ksft_print_header();
	if (geteuid() || !destructive || strcmp(destructive, "true"))
		ksft_exit_skip("changes settings: needs root and RUN_DESTRUCTIVE=true\n");
	if (!(thp_supported_orders() & (1UL << ORDER)))
		ksft_exit_skip("needs THP of 4 pages\n");
	pagemap = open("/proc/self/pagemap", O_RDONLY);
	if (pagemap < 0)
		ksft_exit_fail_perror("/proc/self/pagemap");
	atexit(leave_group);
	if (!enter_group())
		ksft_exit_skip("needs cgroup v2 with memory.reclaim\n");
	ksft_set_plan(2);

	thp_save_settings();
	thp_read_settings(&settings);
	settings.thp_enabled = THP_NEVER;
	settings.hugepages[sz2ord(HPAGE_SIZE, psize())].enabled = THP_NEVER;

	/* A large folio wants slots that are aligned as the addresses are. */
	for (shift = 0; shift < 1UL << ORDER; shift++) {
		settings.hugepages[ORDER].enabled = THP_NEVER;
		thp_write_settings(&settings);
		a = map_and_fill(shift);
		b = map_and_fill(shift);
		swap_out_merged(a, b);

		settings.hugepages[ORDER].enabled = THP_ALWAYS;
		thp_write_settings(&settings);
		nr_lost += nr_wrong(a) + nr_wrong(b);
		for (page = 0; page < NR_PAGES; page++)
			*word(a, page) = 0;
		nr_changed += nr_wrong(b);
	}
	ksft_test_result(!nr_lost, "memory is what it was\n");
	ksft_test_result(!nr_changed, "a write changes no other address\n");
	ksft_finished();
}
