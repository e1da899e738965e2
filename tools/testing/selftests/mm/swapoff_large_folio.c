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
#include <signal.h>
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
#include "cow_context_changes.h"

#define SIZE		(16UL << 20)
#define SECONDS		5
#define NR_READERS	8

static char *memory;
static size_t folio;
static bool interrupted;
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
		for (i = 0; i < SIZE / folio; i++) {
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

/* Folios of one size, and no others */
static void enable_folios(unsigned long orders)
{
	char path[128];

	for (int order = 0; orders >> order; order++) {
		if (!(orders & 1UL << order))
			continue;
		snprintf(path, sizeof(path),
			 "/sys/kernel/mm/transparent_hugepage/hugepages-%zukB/enabled",
			 ((size_t)psize() << order) >> 10);
		if (!change_setting(path, (size_t)psize() << order == folio ? "always" : "never"))
			ksft_exit_fail_perror(path);
	}
}

static void on_signal(int signal)
{
	__atomic_store_n(&interrupted, true, __ATOMIC_RELAXED);
}

int main(void)
{
	pthread_t threads[NR_READERS];
	unsigned long orders, tainted, nr_swapoffs = 0;
	sigset_t all, before;
	time_t end;
	long i;

	ksft_print_header();
	begin_changes(mmap(NULL, sizeof(*changes), PROT_READ | PROT_WRITE,
			   MAP_SHARED | MAP_ANONYMOUS, -1, 0), on_signal);
	if (!may_change())
		ksft_exit_skip("switches swap off, which " NEEDS_DESTRUCTIVE "\n");
	/* Four pages are the least that a large folio of anonymous memory has. */
	folio = psize() > (16UL << 10) ? 4 * psize() : (64UL << 10);
	orders = thp_supported_orders();
	if (!(orders & folio / psize()))
		ksft_exit_skip("needs THP of %zu kB\n", folio >> 10);
	if (!swap_off_and_on())
		ksft_exit_skip("needs swap\n");
	ksft_set_plan(1);
	tainted = read_num("/proc/sys/kernel/tainted");

	enable_folios(orders);
	memory = aligned_alloc(folio, SIZE);
	if (!memory)
		ksft_exit_fail_perror("aligned_alloc");
	pthread_barrier_init(&barrier, NULL, NR_READERS + 1);
	/* Signals are for the thread that switches swap off. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	for (i = 0; i < NR_READERS; i++)
		if (pthread_create(&threads[i], NULL, read_pages, (void *)i))
			ksft_exit_fail_msg("pthread_create\n");
	pthread_sigmask(SIG_SETMASK, &before, NULL);

	for (end = time(NULL) + SECONDS;
	     time(NULL) < end && !__atomic_load_n(&interrupted, __ATOMIC_RELAXED);) {
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
	put_back();
	if (interrupted)
		ksft_exit_fail_msg("interrupted\n");

	ksft_print_msg("swapped off %lu times\n", nr_swapoffs);
	ksft_test_result(nr_swapoffs && !wrong &&
			 read_num("/proc/sys/kernel/tainted") == tainted,
			 "memory is what it was, and the kernel has not complained\n");
	ksft_finished();
}
