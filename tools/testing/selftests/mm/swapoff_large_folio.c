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
#include <time.h>
#include <unistd.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include "kselftest.h"
#include "hugepage_settings.h"
#include "vm_util.h"

#define FOLIO		(64UL << 10)
#define SIZE		(16UL << 20)
#define SECONDS		5
#define NR_READERS	8

static char *memory;
static pthread_barrier_t barrier;
static bool stop;
static unsigned long wrong;

static void *read_pages(void *seed)
{
	unsigned int state = (unsigned long)seed;
	unsigned long i, page;

	/* So that swapoff, woken when a folio has been read, runs first. */
	setpriority(PRIO_PROCESS, 0, 19);
	for (;;) {
		pthread_barrier_wait(&barrier);
		if (stop)
			return NULL;
		for (i = 0; i < SIZE / FOLIO; i++) {
			page = rand_r(&state) % (SIZE / psize());
			if (FORCE_READ(*(unsigned long *)(memory + page * psize())) != page)
				__atomic_add_fetch(&wrong, 1, __ATOMIC_RELAXED);
		}
		pthread_barrier_wait(&barrier);
	}
}

/* Large folios, in swap: swapoff leaves small ones. */
static void fill_and_page_out(void)
{
	unsigned long page;

	if (madvise(memory, SIZE, MADV_DONTNEED))
		ksft_exit_fail_perror("MADV_DONTNEED");
	for (page = 0; page < SIZE / psize(); page++)
		*(unsigned long *)(memory + page * psize()) = page;
	if (madvise(memory, SIZE, MADV_PAGEOUT))
		ksft_exit_fail_perror("MADV_PAGEOUT");
}

int main(void)
{
	pthread_t threads[NR_READERS];
	struct thp_settings settings;
	const int order = sz2ord(FOLIO, psize());
	unsigned long tainted, nr_swapoffs = 0;
	time_t end;
	long i;

	ksft_print_header();
	if (geteuid())
		ksft_exit_skip("needs root\n");
	if (!(thp_supported_orders() & (1UL << order)) || !swap_off_and_on())
		ksft_exit_skip("needs 64 kB THP and swap\n");
	ksft_set_plan(1);
	tainted = read_num("/proc/sys/kernel/tainted");

	thp_save_settings();
	thp_read_settings(&settings);
	settings.hugepages[order].enabled = THP_ALWAYS;
	settings.hugepages[sz2ord(HPAGE_SIZE, psize())].enabled = THP_NEVER;
	thp_write_settings(&settings);
	memory = aligned_alloc(FOLIO, SIZE);
	if (!memory)
		ksft_exit_fail_perror("aligned_alloc");
	pthread_barrier_init(&barrier, NULL, NR_READERS + 1);
	for (i = 0; i < NR_READERS; i++)
		if (pthread_create(&threads[i], NULL, read_pages, (void *)i))
			ksft_exit_fail_msg("pthread_create\n");

	for (end = time(NULL) + SECONDS; time(NULL) < end;) {
		fill_and_page_out();
		pthread_barrier_wait(&barrier);
		/* May fail for want of memory. */
		nr_swapoffs += swap_off_and_on();
		pthread_barrier_wait(&barrier);
	}
	stop = true;
	pthread_barrier_wait(&barrier);
	for (i = 0; i < NR_READERS; i++)
		pthread_join(threads[i], NULL);
	free(memory);

	ksft_print_msg("swapped off %lu times\n", nr_swapoffs);
	ksft_test_result(nr_swapoffs && !wrong &&
			 read_num("/proc/sys/kernel/tainted") == tainted,
			 "memory is what it was, and the kernel has not complained\n");
	ksft_finished();
}
