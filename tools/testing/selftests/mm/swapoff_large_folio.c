// SPDX-License-Identifier: GPL-2.0
/*
 * swapoff while large folios are read in.
 *
 * From a device that is fast, as a RAM disk or zram, a fault reads as many pages as
 * were swapped out together.  Between reading and mapping them it lets go of the
 * folio, and there swapoff finds it.  If that goes wrong the kernel complains, and
 * the memory may be any.
 */
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <sys/mman.h>
#include <sys/swap.h>

#include "kselftest.h"
#include "vm_util.h"

#define THP_64K		"/sys/kernel/mm/transparent_hugepage/hugepages-64kB/enabled"
#define THP_2M		"/sys/kernel/mm/transparent_hugepage/hugepages-2048kB/enabled"
#define FOLIO		(64UL << 10)
#define SIZE		(16UL << 20)
#define SECONDS		10
#define NR_READERS	3

static char *memory;
static bool stop;
static unsigned long wrong;

static void *read_pages(void *seed)
{
	unsigned int state = (unsigned long)seed;

	while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
		unsigned long page = rand_r(&state) % (SIZE / psize());

		if (__atomic_load_n((unsigned long *)(memory + page * psize()),
				    __ATOMIC_RELAXED) != page)
			__atomic_add_fetch(&wrong, 1, __ATOMIC_RELAXED);
	}
	return NULL;
}

static void *page_out(void *unused)
{
	unsigned long at = 0;

	for (; !__atomic_load_n(&stop, __ATOMIC_RELAXED); at = (at + FOLIO) % SIZE)
		madvise(memory + at, FOLIO, MADV_PAGEOUT);
	return NULL;
}

static bool find_swap(char *path)
{
	FILE *swaps = fopen("/proc/swaps", "r");
	char line[256];
	bool found = false;

	while (!found && swaps && fgets(line, sizeof(line), swaps))
		found = sscanf(line, "%199s", path) == 1 && path[0] == '/';
	if (swaps)
		fclose(swaps);
	return found;
}

/* Of "always inherit [madvise] never", madvise */
static void select_option(const char *path, const char *option, char *before, size_t size)
{
	char text[128], *begin, *end;

	if (read_file(path, text, sizeof(text)) <= 0)
		ksft_exit_fail_perror(path);
	begin = strchr(text, '[');
	end = begin ? strchr(begin, ']') : NULL;
	if (!end)
		ksft_exit_fail_msg("%s: %s\n", path, text);
	*end = '\0';
	snprintf(before, size, "%s", begin + 1);
	write_file(path, option, strlen(option) + 1);
}

int main(void)
{
	pthread_t threads[NR_READERS + 1];
	char swap[200], thp_64k[32], thp_2m[32];
	unsigned long page, tainted, nr_swapoffs = 0;
	time_t end;
	long i;

	ksft_print_header();
	if (geteuid())
		ksft_exit_skip("needs root\n");
	if (access(THP_64K, W_OK) || !find_swap(swap))
		ksft_exit_skip("needs 64 kB THP and swap\n");
	ksft_set_plan(1);
	tainted = read_num("/proc/sys/kernel/tainted");

	select_option(THP_64K, "always", thp_64k, sizeof(thp_64k));
	select_option(THP_2M, "never", thp_2m, sizeof(thp_2m));
	memory = aligned_alloc(FOLIO, SIZE);
	if (!memory)
		ksft_exit_fail_perror("aligned_alloc");
	for (page = 0; page < SIZE / psize(); page++)
		*(unsigned long *)(memory + page * psize()) = page;

	for (i = 0; i < NR_READERS; i++)
		if (pthread_create(&threads[i], NULL, read_pages, (void *)i))
			ksft_exit_fail_msg("pthread_create\n");
	if (pthread_create(&threads[i], NULL, page_out, NULL))
		ksft_exit_fail_msg("pthread_create\n");
	for (end = time(NULL) + SECONDS; time(NULL) < end; usleep(2000)) {
		/* May fail for want of memory. */
		if (swapoff(swap))
			continue;
		nr_swapoffs++;
		if (swapon(swap, 0))
			ksft_exit_fail_perror("swapon");
	}
	__atomic_store_n(&stop, true, __ATOMIC_RELAXED);
	for (i = 0; i <= NR_READERS; i++)
		pthread_join(threads[i], NULL);
	free(memory);
	write_file(THP_64K, thp_64k, strlen(thp_64k) + 1);
	write_file(THP_2M, thp_2m, strlen(thp_2m) + 1);

	ksft_print_msg("swapped off %lu times\n", nr_swapoffs);
	ksft_test_result(nr_swapoffs && !wrong &&
			 read_num("/proc/sys/kernel/tainted") == tainted,
			 "memory is what it was, and the kernel has not complained\n");
	ksft_finished();
}
