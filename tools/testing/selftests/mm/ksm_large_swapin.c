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
#define SIZE		(NR_PAGES * psize())
#define ORDER		2
#define FOLIO		((unsigned long)psize() << ORDER)

static const char group[] = "/sys/fs/cgroup/ksm_large_swapin";
/* Before the test */
static bool controls_memory;
static unsigned long ksm_run;
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
	write_num("/sys/kernel/mm/ksm/run", ksm_run);
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
static char *map_and_fill(void)
{
	char *addr = mmap(NULL, SIZE, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	unsigned long page;

	if (addr == MAP_FAILED)
		ksft_exit_fail_perror("mmap");
	for (page = 0; page < NR_PAGES; page++)
		*word(addr, page) = page + 1;
	if (madvise(addr, SIZE, MADV_MERGEABLE))
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

static unsigned long slot_of(char *addr, unsigned long page)
{
	/* The lowest five bits say which device it is. */
	return PAGEMAP_PFN(pagemap_get_entry(pagemap, addr + page * psize())) >> 5;
}

/*
 * A large folio wants slots that follow each other, and are aligned as the
 * addresses are: move these.
 */
static char *align_as_slots(char *addr)
{
	char *to = mmap(NULL, SIZE + FOLIO, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	unsigned long page, nr = 0;

	if (to == MAP_FAILED)
		ksft_exit_fail_perror("mmap");
	to += (slot_of(addr, 0) - (unsigned long)to / psize()) % (FOLIO / psize()) * psize();
	if (mremap(addr, SIZE, SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, to) != to)
		ksft_exit_fail_perror("mremap");

	for (page = 1; page < NR_PAGES; page++)
		nr += slot_of(to, page) == slot_of(to, page - 1) + 1;
	if (nr < NR_PAGES / 2)
		ksft_exit_skip("needs slots that follow each other\n");
	return to;
}

static unsigned long nr_wrong(char *addr)
{
	unsigned long page, nr = 0;

	for (page = 0; page < NR_PAGES; page++)
		nr += *word(addr, page) != page + 1;
	return nr;
}

static void swap_out(char *addr)
{
	int tries;

	for (tries = 0; tries < 100 && !all_swapped(addr); tries++)
		try_write(group, "memory.reclaim", "8M");
	if (!all_swapped(addr))
		ksft_exit_skip("needs swap\n");
}

/* Twice the same memory is one page each to KSM, and then one slot each. */
static void swap_out_merged(char *a, char *b)
{
	int tries;

	for (tries = 0; tries < 20 && nr_same(a, b) < NR_PAGES; tries++)
		if (ksm_start())
			ksft_exit_skip("needs KSM\n");
	write_num("/sys/kernel/mm/ksm/run", 0);
	if (nr_same(a, b) < NR_PAGES)
		ksft_exit_skip("needs KSM, across nodes\n");
	swap_out(a);
	swap_out(b);
}

/* Is what nobody else has read by large folios? */
static bool reads_large(void)
{
	char path[128], *addr = map_and_fill();
	unsigned long before;

	snprintf(path, sizeof(path),
		 "/sys/kernel/mm/transparent_hugepage/hugepages-%lukB/stats/swpin",
		 FOLIO >> 10);
	before = read_num(path);
	swap_out(addr);
	addr = align_as_slots(addr);
	for (unsigned long page = 0; page < NR_PAGES; page++)
		FORCE_READ(*word(addr, page));
	munmap(addr, SIZE);
	return read_num(path) > before;
}

int main(void)
{
	const char *destructive = getenv("RUN_DESTRUCTIVE");
	struct thp_settings settings;
	unsigned long page;
	char *a, *b;

	ksft_print_header();
	if (geteuid() || !destructive || strcmp(destructive, "true"))
		ksft_exit_skip("changes settings: needs root and RUN_DESTRUCTIVE=true\n");
	if (!(thp_supported_orders() & (1UL << ORDER)))
		ksft_exit_skip("needs THP of 4 pages\n");
	pagemap = open("/proc/self/pagemap", O_RDONLY);
	if (pagemap < 0)
		ksft_exit_fail_perror("/proc/self/pagemap");
	thp_save_settings();
	ksm_run = read_num("/sys/kernel/mm/ksm/run");
	atexit(leave_group);
	if (!enter_group())
		ksft_exit_skip("needs cgroup v2 with memory.reclaim\n");

	thp_read_settings(&settings);
	settings.thp_enabled = THP_NEVER;
	settings.hugepages[ORDER].enabled = THP_NEVER;
	thp_write_settings(&settings);
	a = map_and_fill();
	b = map_and_fill();
	swap_out_merged(a, b);
	a = align_as_slots(a);

	settings.hugepages[ORDER].enabled = THP_ALWAYS;
	thp_write_settings(&settings);
	if (!reads_large())
		ksft_exit_skip("needs swap that is read at once, as from a RAM disk\n");
	ksft_set_plan(2);
	ksft_test_result(!nr_wrong(a) && !nr_wrong(b), "memory is what it was\n");
	for (page = 0; page < NR_PAGES; page++)
		*word(a, page) = 0;
	ksft_test_result(!nr_wrong(b), "a write changes no other address\n");
	ksft_finished();
}
