// SPDX-License-Identifier: GPL-2.0
/*
 * COW contexts: random operations of many processes on anonymous memory, while its
 * pages are moved, swapped, merged, split and collapsed under them.
 *
 * Workers are processes that fork, exec and exit, parents often before their children.
 * Each has some regions of memory of which it knows, for each page, who wrote it last
 * and when.  What it does to them is random, and so is what disturbers do to the memory
 * of all: they move pages, compact, reclaim, swap off, merge, and so on.  A page that is
 * lost, stale or somebody else's is not what its worker expects; an entry that a walk
 * has missed makes a worker hang, or the kernel complain.  After each round the kernel's
 * own check is run, if there is one.
 *
 * What each worker does follows from its seed and, in children, from that of the parent;
 * what the others do at the same time does not.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <linux/mempolicy.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <mm/gup_test.h>
#include "kselftest.h"
#include "hugepage_settings.h"
#include "vm_util.h"
#include "cow_context_changes.h"
#include "cow_context_slab.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE		25
#endif
#ifndef MAP_HUGE_SHIFT
#define MAP_HUGE_SHIFT		26
#endif

#define PAGE		((unsigned long)psize())
/* As a THP, hugetlb, or both; there may be larger and smaller ones. */
#define HUGE		((unsigned long)HPAGE_SIZE)
#define HUGE_PAGES	(HUGE / PAGE)

/*
 * All workers have their memory at the same addresses, where disturbers find it, and which
 * all architectures have.  The last place is for what grows, far from the others.
 */
#define ARENA		((char *)(1UL << (sizeof(long) == 8 ? 36 : 30)))
#define PLACE_SIZE	(2 * HUGE)
#define NR_PLACES	2
#define GROWTH_END	(ARENA + (256UL << 20))

/* What is in a private file where nobody has written */
#define FILE_TAG	0x8000000000000000ULL

#define GUP_TEST	"/sys/kernel/debug/gup_test"
/* What several workers may write */
#define COMMON_TAG	0x4000000000000000ULL
#define NR_COMMON_TAGS	4

#define OFFLINE_SECONDS	10
#define KSM		"/sys/kernel/mm/ksm/"
#define CGROUP		"/sys/fs/cgroup/cow_context_stress"

#define MAX_WORKERS	256
#define NR_TOUCHERS	2

/* A worker that takes longer for one operation hangs. */
#define HANG_SECONDS	120

/* Pages that a mapping grows to */
#define MAX_GROWTH	64

/* In each page, so many words are looked at. */
#define NR_WORDS	8

enum kind { ANON, PRIVATE_FILE, THP, HUGETLB, NR_KINDS };

static struct {
	const char *name;
	int pages;
	int unit;
} kinds[NR_KINDS] = {
	[ANON]		= { "anonymous" },
	[PRIVATE_FILE]	= { "private file" },
	[THP]		= { "THP" },
	[HUGETLB]	= { "hugetlb" },
};

#define MAX_PAGES	128

/* Of operations, and of disturbers */
#define MAX_COUNTS	32

struct slot {
	pid_t pid;
	unsigned int operation;
	time_t since;
	bool paused;
};

/* In memory that all processes share */
static struct shared {
	struct slot slots[MAX_WORKERS];
	unsigned long done[MAX_COUNTS];		/* by operation */
	unsigned long disturbed[MAX_COUNTS];	/* by disturber */
	unsigned long reads, writes, forks, checks, injected, killed;
	unsigned long planes;			/* mappings with offsets of their own */
	unsigned long refused;			/* to take memory offline */
	struct changes changes;
	pid_t main;
	int live;
	int max_live;
	int serial;
	bool injects;
	bool pause;
	bool stop;
	int failed;
	char failure[512];
} *shared;

static int shared_fd, file_fd;
static char *copy;		/* of a page */

struct page {
	uint64_t tag;		/* who wrote it, and when; or base */
	uint64_t base;		/* what is there if nobody has */
	unsigned char place;
	bool wiped;		/* in children */
	bool locked;
};

/*
 * The lock is held for read while a page is used, which is locked for that; and for
 * write while pages come, go or move.  At fork all are held for write, so that the
 * child's memory is what it knows.
 */
static struct region {
	pthread_rwlock_t lock;
	enum kind kind;
	struct page *pages;	/* none, if there was no memory for it */
	bool read_only;		/* of huge pages there may be none for a copy */
} regions[NR_KINDS] = {
	{ .kind = ANON },
	{ .kind = PRIVATE_FILE },
	{ .kind = THP },
	{ .kind = HUGETLB },
};

static struct slot *slot;
static char *broken;		/* a page that memory failure takes away */
static __thread int fail_nth = -1;
static __thread bool armed;
static unsigned int next_nth[MAX_COUNTS];	/* by operation */
static unsigned int serial, sequence;
static uint64_t random_state;
static pthread_t touchers[NR_TOUCHERS];
static int nr_touchers;
static bool touchers_run;

static void count(unsigned long *counter, unsigned long nr)
{
	__atomic_add_fetch(counter, nr, __ATOMIC_RELAXED);
}

static void __printf(1, 2) fail(const char *format, ...)
{
	va_list args;

	if (!__atomic_exchange_n(&shared->failed, 1, __ATOMIC_ACQ_REL)) {
		va_start(args, format);
		vsnprintf(shared->failure, sizeof(shared->failure), format, args);
		va_end(args);
	}
	__atomic_store_n(&shared->stop, true, __ATOMIC_RELEASE);
}

static bool stopped(void)
{
	return __atomic_load_n(&shared->stop, __ATOMIC_ACQUIRE);
}

/* xorshift64*, which is the same everywhere */
static unsigned int random_of(uint64_t *state, unsigned int limit)
{
	*state ^= *state >> 12;
	*state ^= *state << 25;
	*state ^= *state >> 27;
	return (unsigned int)((*state * 0x2545f4914f6cdd1dULL) >> 33) % limit;
}

static unsigned int random_below(unsigned int limit)
{
	return random_of(&random_state, limit);
}

static uint64_t new_seed(uint64_t seed, unsigned int number)
{
	seed = (seed + number) * 0x9e3779b97f4a7c15ULL;
	return (seed ^ seed >> 29) | 1;
}

static char *place_of(enum kind kind, int place)
{
	return ARENA + (kind * NR_PLACES + place) * PLACE_SIZE;
}

static char *address(const struct region *region, int nr)
{
	return place_of(region->kind, region->pages[nr].place) + nr * PAGE;
}

static uint64_t word_of(uint64_t tag, int word)
{
	return tag ? tag ^ (uint64_t)word << 56 : 0;
}

static void write_page(char *addr, uint64_t tag)
{
	for (int i = 0; i < NR_WORDS; i++)
		__atomic_store_n((uint64_t *)(addr + i * (PAGE / NR_WORDS)),
				 word_of(tag, i), __ATOMIC_RELAXED);
}

static bool check_words(const char *what, const char *at, const char *addr, uint64_t tag)
{
	for (int i = 0; i < NR_WORDS; i++) {
		uint64_t found = __atomic_load_n((const uint64_t *)(addr + i * (PAGE / NR_WORDS)),
						 __ATOMIC_RELAXED);

		if (found != word_of(tag, i)) {
			fail("worker %u (pid %d), %s at %p: word %d is %#lx and should be %#lx",
			     serial, getpid(), what, at, i, (unsigned long)found,
			     (unsigned long)word_of(tag, i));
			return false;
		}
	}
	return true;
}

static bool check_page(const struct region *region, int nr)
{
	char *addr = address(region, nr);

	return check_words(kinds[region->kind].name, addr, addr, region->pages[nr].tag);
}

/* Now and then one that others write, too, so that KSM has something to merge. */
static uint64_t next_tag(void)
{
	unsigned int nr = __atomic_add_fetch(&sequence, 1, __ATOMIC_RELAXED);

	return nr % 8 ? (uint64_t)serial << 32 | nr : COMMON_TAG | nr / 8 % NR_COMMON_TAGS;
}

/* Reads a page of a region that is locked, and may write it. */
static void use_page(struct region *region, uint64_t *state)
{
	struct page *page;
	int nr;

	if (!region->pages)
		return;
	nr = random_of(state, kinds[region->kind].pages);
	page = &region->pages[nr];
	while (__atomic_test_and_set(&page->locked, __ATOMIC_ACQUIRE))
		sched_yield();
	count(&shared->reads, 1);
	if (check_page(region, nr) && !region->read_only && random_of(state, 2)) {
		page->tag = next_tag();
		write_page(address(region, nr), page->tag);
		count(&shared->writes, 1);
	}
	__atomic_clear(&page->locked, __ATOMIC_RELEASE);
}

/*
 * For the thread that opens it: so many allocations go well, and the next one fails.
 * Who asks is not to be bothered itself, so that is tried again.
 */
static void open_fail_nth(void)
{
	fail_nth = shared->injects ? open("/proc/thread-self/fail-nth", O_RDWR | O_CLOEXEC) : -1;
	armed = false;
}

static void set_fail_nth(unsigned int nth)
{
	char text[16];
	int tries;

	snprintf(text, sizeof(text), "%u", nth);
	for (tries = 0; write(fail_nth, text, strlen(text)) < 0; tries++) {
		if (errno == EFAULT && tries < 10)
			continue;
		fail("fail-nth: %s", strerror(errno));
		break;
	}
	armed = nth;
}

/* Did one fail? */
static bool disarm(void)
{
	char text[16] = "";
	bool failed;

	if (!armed)
		return false;
	while (pread(fail_nth, text, sizeof(text) - 1, 0) < 0 && errno == EFAULT)
		;
	/* It has counted down to 0 then. */
	failed = text[0] && !atoi(text);
	if (failed)
		count(&shared->injected, 1);
	set_fail_nth(0);
	return failed;
}

static void *touch(void *data)
{
	uint64_t state = (uint64_t)(uintptr_t)data;

	open_fail_nth();
	while (__atomic_load_n(&touchers_run, __ATOMIC_ACQUIRE) && !stopped()) {
		struct region *region = &regions[random_of(&state, NR_KINDS)];

		pthread_rwlock_rdlock(&region->lock);
		/* Of huge pages there may be no other, and that is a signal. */
		if (fail_nth >= 0 && region->kind != HUGETLB && !random_of(&state, 4))
			set_fail_nth(1 + random_of(&state, 8));
		use_page(region, &state);
		disarm();
		pthread_rwlock_unlock(&region->lock);
		if (!random_of(&state, 16))
			usleep(random_of(&state, 2000));
	}
	if (fail_nth >= 0)
		close(fail_nth);
	return NULL;
}

static void start_touchers(void)
{
	touchers_run = true;
	for (nr_touchers = 0; nr_touchers < NR_TOUCHERS; nr_touchers++)
		if (pthread_create(&touchers[nr_touchers], NULL, touch,
				   (void *)(uintptr_t)new_seed(random_state, nr_touchers)))
			break;
}

static void stop_touchers(void)
{
	__atomic_store_n(&touchers_run, false, __ATOMIC_RELEASE);
	while (nr_touchers)
		pthread_join(touchers[--nr_touchers], NULL);
}

static void init_locks(void)
{
	for (int kind = 0; kind < NR_KINDS; kind++)
		pthread_rwlock_init(&regions[kind].lock, NULL);
}

static void lock_all(void)
{
	for (int kind = 0; kind < NR_KINDS; kind++)
		pthread_rwlock_wrlock(&regions[kind].lock);
}

static void unlock_all(void)
{
	for (int kind = 0; kind < NR_KINDS; kind++)
		pthread_rwlock_unlock(&regions[kind].lock);
}

/* Which of the sizes of hugetlb: this one, or what there is instead */
static int hugetlb_flag;

static void size_kinds(void)
{
	int most = PLACE_SIZE / PAGE;

	for (int kind = 0; kind < NR_KINDS; kind++) {
		kinds[kind].pages = kind < THP && most > MAX_PAGES ? MAX_PAGES : most;
		kinds[kind].unit = kind == HUGETLB ? HUGE_PAGES : 1;
	}
	if (!access("/sys/kernel/mm/hugepages/hugepages-2048kB", F_OK))
		hugetlb_flag = HPAGE_SHIFT << MAP_HUGE_SHIFT;
	copy = malloc(PAGE);
	if (!copy)
		ksft_exit_fail_perror("malloc");
}

static char *map_range(enum kind kind, int place, int first, int nr)
{
	int flags = MAP_PRIVATE | MAP_FIXED, fd = -1, prot = PROT_READ | PROT_WRITE;
	char *addr = place_of(kind, place) + first * PAGE;
	off_t offset = 0;

	if (kind == PRIVATE_FILE) {
		fd = file_fd;
		offset = first * PAGE;
	} else {
		flags |= MAP_ANONYMOUS;
	}
	/* A child would have no reserve to populate it from. */
	if (kind == HUGETLB)
		flags |= MAP_HUGETLB | MAP_POPULATE | hugetlb_flag;
	if (mmap(addr, nr * PAGE, prot, flags, fd, offset) == MAP_FAILED)
		return NULL;
	if (kind == THP)
		madvise(addr, nr * PAGE, MADV_HUGEPAGE);
	return addr;
}

static void forget(struct region *region, int first, int nr, int place)
{
	for (int i = first; i < first + nr; i++) {
		region->pages[i].tag = region->pages[i].base;
		region->pages[i].place = place;
		region->pages[i].wiped = false;
	}
}

/* It may split a VMA, and for want of memory for that do nothing. */
static bool unmap_range(char *addr, size_t size)
{
	if (!munmap(addr, size))
		return true;
	if (!armed)
		fail("munmap of %zu bytes at %p: %s", size, addr, strerror(errno));
	return false;
}

static void drop_region(struct region *region)
{
	if (!unmap_range(place_of(region->kind, 0), NR_PLACES * PLACE_SIZE)) {
		disarm();
		unmap_range(place_of(region->kind, 0), NR_PLACES * PLACE_SIZE);
	}
	free(region->pages);
	region->pages = NULL;
}

/* What was left of the region's memory is gone; it begins anew, if there is memory. */
static void begin_region(struct region *region)
{
	enum kind kind = region->kind;
	int nr = kinds[kind].pages;

	drop_region(region);
	region->pages = calloc(nr, sizeof(*region->pages));
	if (!region->pages || !map_range(kind, 0, 0, nr)) {
		drop_region(region);
		return;
	}
	/* All of it is there, whatever became of MAP_POPULATE. */
	for (int i = 0; kind == HUGETLB && i < nr; i += HUGE_PAGES)
		write_page(place_of(kind, 0) + i * PAGE, 0);
	region->read_only = false;
	for (int i = 0; i < nr; i++)
		region->pages[i].base = kind == PRIVATE_FILE ? FILE_TAG | i : 0;
	forget(region, 0, nr, 0);
}

/* Some pages of a region that are at one place, as far as its kind can be parted */
struct range {
	int first, nr, place;
	char *addr;
	size_t size;
};

static bool random_range(const struct region *region, struct range *range)
{
	int pages = kinds[region->kind].pages, unit = kinds[region->kind].unit;
	int first = random_below(pages) / unit * unit;
	int end = first + 1 + random_below(pages), last;

	/* Now and then all of it. */
	if (!random_below(3)) {
		first = 0;
		end = pages;
	}
	if (!region->pages)
		return false;
	range->place = region->pages[first].place;
	last = first + unit;
	while (last < pages && last < end && region->pages[last].place == range->place)
		last += unit;
	range->first = first;
	range->nr = last - first;
	range->addr = address(region, first);
	range->size = range->nr * PAGE;
	return true;
}

static bool is_anon(const struct region *region)
{
	return region->kind == ANON || region->kind == THP;
}

/* What is about to go is looked at, now and then. */
static void check_range(const struct region *region, const struct range *range)
{
	if (random_below(2))
		return;
	for (int i = range->first; i < range->first + range->nr; i++)
		check_page(region, i);
}

static void begin_worker(uint64_t seed)
{
	random_state = seed;
	serial = __atomic_add_fetch(&shared->serial, 1, __ATOMIC_RELAXED);
	sequence = 0;
	slot = NULL;
	/* After exec it has one. */
	for (int i = 0; i < MAX_WORKERS; i++)
		if (shared->slots[i].pid == getpid())
			slot = &shared->slots[i];
	for (int i = 0; i < MAX_WORKERS && !slot; i++) {
		pid_t nobody = 0;

		if (__atomic_compare_exchange_n(&shared->slots[i].pid, &nobody, getpid(), false,
						__ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
			slot = &shared->slots[i];
	}
	if (!slot) {
		fail("no slot for a worker");
		_exit(0);
	}
	slot->paused = false;
	slot->since = time(NULL);
	/* Not that of the parent, and nothing of what that wanted to fail */
	if (fail_nth >= 0)
		close(fail_nth);
	open_fail_nth();
}

/* One allocation of the next operation is to fail: each time a later one. */
static void inject(unsigned int operation)
{
	if (fail_nth >= 0 && random_below(2))
		set_fail_nth(++next_nth[operation]);
}

static void end_injection(unsigned int operation)
{
	bool was_armed = armed;

	/* It did not have so many. */
	if (!disarm() && was_armed)
		next_nth[operation] = 0;
}

/*
 * What a worker does with a region, which is locked: for write, but where it says so.
 * Each of these tells whether there was something to do.
 */
static bool map_anew(struct region *region, bool unmaps)
{
	struct range range;

	/* There may be memory again. */
	if (!region->pages) {
		begin_region(region);
		return region->pages;
	}
	if (!random_range(region, &range))
		return false;
	check_range(region, &range);
	if (region->kind == HUGETLB) {
		begin_region(region);
		return true;
	}
	if (unmaps && !unmap_range(range.addr, range.size))
		return false;
	if (map_range(region->kind, range.place, range.first, range.nr))
		forget(region, range.first, range.nr, range.place);
	else
		drop_region(region);
	return true;
}

static bool unmap(struct region *region)
{
	return map_anew(region, true);
}

static bool map_fixed(struct region *region)
{
	return map_anew(region, false);
}

static bool move_range(struct region *region, int flags)
{
	unsigned char resident;
	struct range range;
	char *to;

	if (!random_range(region, &range) || (flags && region->kind == HUGETLB))
		return false;
	to = place_of(region->kind, !range.place) + range.first * PAGE;
	if (mremap(range.addr, range.size, range.size, MREMAP_MAYMOVE | MREMAP_FIXED | flags,
		   to) != to) {
		/* Several VMAs cannot be moved in all ways; some may have been. */
		bool begins = flags;

		for (int i = range.first; i < range.first + range.nr && !begins; i++)
			begins = mincore(address(region, i), PAGE, &resident);
		if (begins)
			begin_region(region);
		return false;
	}
	for (int i = range.first; i < range.first + range.nr; i++)
		region->pages[i].place = !range.place;
	/* What DONTUNMAP leaves is empty, and gets memory of its own. */
	for (int i = range.first; flags && i < range.first + range.nr; i += 1 + random_below(8)) {
		char *left = range.addr + (i - range.first) * PAGE;

		check_words("left by DONTUNMAP", left, left, region->pages[i].base);
		write_page(left, next_tag());
	}
	return true;
}

static bool move(struct region *region)
{
	return move_range(region, 0);
}

static bool move_dontunmap(struct region *region)
{
	return move_range(region, MREMAP_DONTUNMAP);
}

/* Shrinks and grows again, at the end of what is there */
static bool resize(struct region *region)
{
	int pages = kinds[region->kind].pages;
	int nr = 1 + random_below(pages), first = pages - nr, left = random_below(nr), place;
	bool wiped, grown;
	char *addr;

	if (!region->pages || region->kind == HUGETLB || !left)
		return false;
	place = region->pages[first].place;
	for (int i = first; i < pages; i++)
		if (region->pages[i].place != place)
			return false;
	addr = address(region, first);
	if (mremap(addr, nr * PAGE, left * PAGE, 0) != addr)
		return false;
	/* It cannot grow if it is more than one VMA. */
	wiped = region->pages[first].wiped;
	grown = mremap(addr, left * PAGE, nr * PAGE, 0) == addr;
	if (!grown) {
		wiped = false;
		if (!map_range(region->kind, place, first + left, nr - left)) {
			drop_region(region);
			return true;
		}
	}
	forget(region, first + left, nr - left, place);
	for (int i = first + left; i < pages; i++)
		region->pages[i].wiped = wiped;
	return grown;
}

/* From here on beside the threads that use the pages */
static bool protect(struct region *region)
{
	int prot = PROT_READ | PROT_WRITE | (random_below(2) ? PROT_EXEC : 0);
	struct range range;

	if (!random_range(region, &range))
		return false;
	if (!mprotect(range.addr, range.size, prot))
		return true;
	if (!armed)
		fail("mprotect: %s", strerror(errno));
	return false;
}

static bool advise(struct region *region, int advice)
{
	struct range range;

	return random_range(region, &range) && !madvise(range.addr, range.size, advice);
}

static bool pageout(struct region *region)
{
	return advise(region, MADV_PAGEOUT);
}

static bool cold(struct region *region)
{
	return advise(region, MADV_COLD);
}

static bool collapse(struct region *region)
{
	return advise(region, MADV_COLLAPSE);
}

static bool make_mergeable(struct region *region)
{
	return advise(region, random_below(3) ? MADV_MERGEABLE : MADV_UNMERGEABLE);
}

/* Huge pages would be copied, and there may be none. */
static bool lock(struct region *region)
{
	bool locks = random_below(2);
	struct range range;

	if (region->kind == HUGETLB || !random_range(region, &range))
		return false;
	return !(locks ? mlock(range.addr, range.size) : munlock(range.addr, range.size));
}

/* And no more */
static bool dontneed(struct region *region)
{
	struct range range;

	if (region->kind == HUGETLB || !random_range(region, &range))
		return false;
	check_range(region, &range);
	munlock(range.addr, range.size);
	if (madvise(range.addr, range.size, MADV_DONTNEED)) {
		/* Some of it may have been dropped. */
		begin_region(region);
		return false;
	}
	for (int i = range.first; i < range.first + range.nr; i++)
		region->pages[i].tag = region->pages[i].base;
	return true;
}

static bool wipe_on_fork(struct region *region)
{
	bool wiped = random_below(2);
	struct range range;

	if (!is_anon(region) || !random_range(region, &range))
		return false;
	if (madvise(range.addr, range.size, wiped ? MADV_WIPEONFORK : MADV_KEEPONFORK)) {
		begin_region(region);
		return false;
	}
	for (int i = range.first; i < range.first + range.nr; i++)
		region->pages[i].wiped = wiped;
	return true;
}

static struct page *random_page(struct region *region, char **addr)
{
	int nr = random_below(kinds[region->kind].pages);

	if (!region->pages)
		return NULL;
	*addr = address(region, nr);
	return &region->pages[nr];
}

/* A page that is in a pipe, too, keeps its contents there. */
static bool splice_page(struct region *region)
{
	struct iovec iov = { .iov_len = PAGE };
	char *addr;
	struct page *page = random_page(region, &addr);
	bool spliced;
	int pipes[2];

	if (!page || pipe(pipes))
		return false;
	iov.iov_base = addr;
	spliced = vmsplice(pipes[1], &iov, 1, 0) == (ssize_t)PAGE;
	if (spliced) {
		if (random_below(2))
			usleep(random_below(5000));
		if (read(pipes[0], copy, PAGE) == (ssize_t)PAGE)
			check_words("read from a pipe", addr, copy, page->tag);
	}
	close(pipes[0]);
	close(pipes[1]);
	return spliced;
}

/* What is pinned stays where it is, and is not what a child has got. */
static bool pin_longterm(struct region *region)
{
	struct pin_longterm_test test = { .size = PAGE, .flags = PIN_LONGTERM_TEST_FLAG_USE_WRITE };
	char *addr;
	struct page *page = random_page(region, &addr);
	__u64 to = (unsigned long)copy;
	bool pinned;
	int fd;

	if (!page || region->kind == HUGETLB)
		return false;
	fd = open(GUP_TEST, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return false;
	test.addr = (unsigned long)addr;
	pinned = !ioctl(fd, PIN_LONGTERM_TEST_START, &test);
	if (pinned) {
		usleep(random_below(5000));
		page->tag = next_tag();
		write_page(addr, page->tag);
		if (!ioctl(fd, PIN_LONGTERM_TEST_READ, &to))
			check_words("read from a pinned page", addr, copy, page->tag);
	}
	close(fd);
	return pinned;
}

static bool pin(struct region *region)
{
	char *addr;
	struct page *page = random_page(region, &addr);
	struct iovec from = { .iov_len = PAGE }, to = { copy, PAGE };

	if (!page || region->kind == HUGETLB)
		return false;
	from.iov_base = addr;
	if (syscall(SYS_process_vm_readv, getpid(), &to, 1, &from, 1, 0) != (long)PAGE)
		return false;
	return check_words("read from a process", addr, copy, page->tag);
}

static bool move_by_userfaultfd(struct region *region)
{
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_MOVE };
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	struct uffdio_move move = { .mode = UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES };
	struct range range;
	struct page *pages;
	int uffd, nr = 0;
	char *to;

	if (!is_anon(region) || !random_range(region, &range))
		return false;
	pages = &region->pages[range.first];
	uffd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (uffd < 0)
		return false;
	to = map_range(region->kind, !range.place, range.first, range.nr);
	if (!to)
		goto out;
	/* Only what nobody else has can be moved. */
	for (int i = 0; i < range.nr; i++)
		if (pages[i].tag)
			write_page(range.addr + i * PAGE, pages[i].tag);

	reg.range.start = (unsigned long)to;
	reg.range.len = range.size;
	if (ioctl(uffd, UFFDIO_API, &api) || ioctl(uffd, UFFDIO_REGISTER, &reg))
		goto out;
	move.dst = (unsigned long)to;
	move.src = (unsigned long)range.addr;
	move.len = range.size;
	/* The source may be several VMAs, locked, or have changed hands meanwhile. */
	ioctl(uffd, UFFDIO_MOVE, &move);
	if (move.move > 0)
		nr = move.move / PAGE;
	ioctl(uffd, UFFDIO_UNREGISTER, &reg.range);
	for (int i = 0; i < nr; i++) {
		pages[i].place = !range.place;
		pages[i].wiped = false;
	}
out:
	close(uffd);
	return nr;
}

/* Takes a page away that nobody will miss, and gives it back */
static bool soft_offline(struct region *region)
{
	char *addr;
	struct page *page = random_page(region, &addr);
	unsigned long pfn;
	int pagemap;

	/* It is slow. */
	if (!shared->changes.poisons || !page || region->kind == HUGETLB || random_below(8))
		return false;
	pagemap = open("/proc/self/pagemap", O_RDONLY);
	if (pagemap < 0)
		return false;
	check_words("before soft offlining", addr, addr, page->tag);
	pfn = pagemap_get_pfn(pagemap, addr);
	close(pagemap);
	if (pfn == -1UL || madvise(addr, PAGE, MADV_SOFT_OFFLINE))
		return false;
	check_words("after soft offlining", addr, addr, page->tag);
	/* If it was another one by then, it is given back at the end. */
	unpoison_memory(pfn);
	return true;
}

/* A page that breaks is lost for those who have it: here, for nobody else. */
static bool break_page(struct region *region)
{
	unsigned long pfn = -1UL;
	bool done = false;
	int pagemap;

	if (!shared->changes.poisons || random_below(8))
		return false;
	broken = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (broken == MAP_FAILED)
		return false;
	pagemap = open("/proc/self/pagemap", O_RDONLY);
	if (pagemap >= 0) {
		write_page(broken, next_tag());
		pfn = pagemap_get_pfn(pagemap, broken);
		done = pfn != -1UL && !madvise(broken, PAGE, MADV_HWPOISON);
		close(pagemap);
	}
	munmap(broken, PAGE);
	if (done)
		unpoison_memory(pfn);
	return done;
}

/* A mapping that grows downwards as it is touched, as a stack does */
static bool grow(struct region *unused)
{
	char *end = GROWTH_END;
	int nr = 1 + random_below(MAX_GROWTH);
	uint64_t tags[MAX_GROWTH];

	/* For want of memory it would not grow, and that is a signal. */
	if (shared->injects)
		return false;
	if (mmap(end - PAGE, PAGE, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE | MAP_GROWSDOWN,
		 -1, 0) != end - PAGE)
		return false;
	for (int i = 0; i < nr; i++) {
		tags[i] = next_tag();
		write_page(end - (i + 1) * PAGE, tags[i]);
		if (!random_below(16))
			usleep(random_below(2000));
	}
	for (int i = 0; i < nr; i++) {
		char *addr = end - (i + 1) * PAGE;

		check_words("grown downwards", addr, addr, tags[i]);
	}
	munmap(end - nr * PAGE, nr * PAGE);
	return true;
}

static bool check_region(struct region *region)
{
	for (int i = 0; region->pages && i < kinds[region->kind].pages && !stopped(); i++)
		check_page(region, i);
	return region->pages;
}

/* When no other thread of the worker is left */
static void check_all(void)
{
	for (int kind = 0; kind < NR_KINDS; kind++)
		check_region(&regions[kind]);
}

static void give_up_slot(struct slot *slot)
{
	slot->since = 0;
	__atomic_store_n(&slot->pid, 0, __ATOMIC_RELEASE);
}

static void __noreturn leave(void)
{
	give_up_slot(slot);
	__atomic_sub_fetch(&shared->live, 1, __ATOMIC_RELAXED);
	_exit(0);
}

/* Asks children how they ended; false if there are none. */
static bool reap(void)
{
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
		if (!status)
			continue;
		for (int i = 0; i < MAX_WORKERS; i++) {
			if (shared->slots[i].pid != pid)
				continue;
			__atomic_sub_fetch(&shared->live, 1, __ATOMIC_RELAXED);
			give_up_slot(&shared->slots[i]);
		}
		/* For want of memory, if it was not for a page that is broken */
		if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) {
			count(&shared->killed, 1);
			continue;
		}
		fail("pid %d ended with status %#x", pid, status);
	}
	return !pid;
}

/* With all regions locked */
static bool fork_worker(struct region *unused)
{
	uint64_t seed = new_seed(random_state, random_below(1 << 30));
	bool exits = !random_below(3);
	pid_t pid;

	/* One that leaves makes room for the other. */
	if (__atomic_add_fetch(&shared->live, 1, __ATOMIC_RELAXED) > shared->max_live + exits) {
		__atomic_sub_fetch(&shared->live, 1, __ATOMIC_RELAXED);
		return false;
	}
	regions[HUGETLB].read_only = true;
	pid = fork();
	if (pid < 0) {
		__atomic_sub_fetch(&shared->live, 1, __ATOMIC_RELAXED);
		return false;
	}
	if (!pid) {
		for (int kind = 0; kind < NR_KINDS; kind++)
			for (int i = 0; regions[kind].pages && i < kinds[kind].pages; i++)
				if (regions[kind].pages[i].wiped)
					regions[kind].pages[i].tag = 0;
		/* The parent's thread holds the locks, and so does this one. */
		init_locks();
		lock_all();
		begin_worker(seed);
		start_touchers();
		return true;
	}
	count(&shared->forks, 1);
	if (exits) {
		unlock_all();
		stop_touchers();
		check_all();
		reap();
		leave();
	}
	return true;
}

static bool exec_worker(struct region *unused)
{
	char seed[32], shared_nr[16], file_nr[16];

	if (random_below(8))
		return false;
	for (int kind = 0; kind < NR_KINDS; kind++)
		check_region(&regions[kind]);
	snprintf(seed, sizeof(seed), "%lu", (unsigned long)random_state);
	snprintf(shared_nr, sizeof(shared_nr), "%d", shared_fd);
	snprintf(file_nr, sizeof(file_nr), "%d", file_fd);
	count(&shared->done[slot->operation], 1);
	/* What fails in exec, and in what follows until main(), is a signal. */
	disarm();
	execl("/proc/self/exe", "cow_context_stress", "worker", seed, shared_nr, file_nr, NULL);
	return false;
}

static const struct operation {
	bool (*run)(struct region *region);
	const char *name;
	int weight;
	enum { ALONE, BESIDE, ALL } locks;
} operations[] = {
	{ protect, "mprotect", 8, BESIDE },
	{ cold, "cold", 2, BESIDE },
	{ pageout, "pageout", 4, BESIDE },
	{ collapse, "collapse", 2, BESIDE },
	{ make_mergeable, "mergeable", 2, BESIDE },
	{ lock, "mlock", 2, BESIDE },
	{ unmap, "munmap", 5, ALONE },
	{ map_fixed, "map_fixed", 5, ALONE },
	{ move, "mremap", 10, ALONE },
	{ move_dontunmap, "dontunmap", 3, ALONE },
	{ resize, "resize", 3, ALONE },
	{ dontneed, "dontneed", 3, ALONE },
	{ wipe_on_fork, "wipeonfork", 1, ALONE },
	{ splice_page, "vmsplice", 2, ALONE },
	{ pin, "pin", 2, ALONE },
	{ pin_longterm, "pin_longterm", 2, ALONE },
	{ move_by_userfaultfd, "uffd_move", 4, ALONE },
	{ soft_offline, "soft_offline", 1, ALONE },
	{ break_page, "hwpoison", 1, ALONE },
	{ grow, "growsdown", 2, ALONE },
	{ check_region, "check", 1, ALONE },
	{ fork_worker, "fork", 6, ALL },
	{ exec_worker, "exec", 1, ALL },
};

/* Who was to stop and to put back may have been killed. */
static bool ends(void)
{
	if (kill(shared->main, 0))
		__atomic_store_n(&shared->stop, true, __ATOMIC_RELEASE);
	return stopped();
}

static void pause_if_asked(void)
{
	if (!__atomic_load_n(&shared->pause, __ATOMIC_ACQUIRE))
		return;
	__atomic_store_n(&slot->paused, true, __ATOMIC_RELEASE);
	while (__atomic_load_n(&shared->pause, __ATOMIC_ACQUIRE) && !stopped()) {
		/* Those who were killed do not pause. */
		reap();
		usleep(1000);
	}
	__atomic_store_n(&slot->since, time(NULL), __ATOMIC_RELAXED);
	__atomic_store_n(&slot->paused, false, __ATOMIC_RELEASE);
}

static void __noreturn work(void)
{
	struct region *region;
	int all = 0, chosen;
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(operations); i++)
		all += operations[i].weight;

	while (!ends()) {
		pause_if_asked();
		reap();
		chosen = random_below(all);
		for (i = 0; chosen >= operations[i].weight; i++)
			chosen -= operations[i].weight;

		__atomic_store_n(&slot->operation, i, __ATOMIC_RELAXED);
		__atomic_store_n(&slot->since, time(NULL), __ATOMIC_RELEASE);
		region = &regions[random_below(NR_KINDS)];
		if (operations[i].locks == ALL)
			lock_all();
		else if (operations[i].locks == BESIDE)
			pthread_rwlock_rdlock(&region->lock);
		else
			pthread_rwlock_wrlock(&region->lock);

		inject(i);
		if (operations[i].run(region))
			count(&shared->done[i], 1);
		end_injection(i);

		if (operations[i].locks == ALL)
			unlock_all();
		else
			pthread_rwlock_unlock(&region->lock);
	}
	stop_touchers();
	check_all();
	leave();
}

static void on_signal(int signal, siginfo_t *info, void *context)
{
	if (signal == SIGBUS && info->si_addr == broken)
		return;
	/* The kernel did not get at what it wanted to read or write here. */
	if (signal == SIGSEGV && info->si_code == SI_KERNEL && shared->injects)
		leave();
	fail("worker %u (pid %d) got signal %d at %p, in %s", serial, getpid(), signal,
	     info->si_addr, operations[slot->operation].name);
	_exit(0);
}

static void __noreturn new_worker(uint64_t seed)
{
	struct sigaction action = { .sa_sigaction = on_signal, .sa_flags = SA_SIGINFO };

	sigaction(SIGBUS, &action, NULL);
	sigaction(SIGSEGV, &action, NULL);
	begin_worker(seed);
	init_locks();
	for (int kind = 0; kind < NR_KINDS; kind++)
		begin_region(&regions[kind]);
	start_touchers();
	work();
}

/* What happens to the memory of all of them */
static pid_t random_worker(void)
{
	pid_t pid = 0;

	for (int i = 0; i < 100 && !pid; i++)
		pid = shared->slots[random_below(MAX_WORKERS)].pid;
	return pid;
}

static unsigned long move_pages_about(void)
{
	int nodes[256], status[256], node = random_below(2), nr;
	enum kind kind = random_below(NR_KINDS);
	int first = random_below(kinds[kind].pages), place = random_below(NR_PLACES);
	unsigned long moved = 0;
	pid_t pid = random_worker();
	void *pages[256];

	for (nr = 0; nr < 256 && first + nr < kinds[kind].pages; nr++) {
		pages[nr] = place_of(kind, place) + (first + nr) * PAGE;
		nodes[nr] = node;
	}
	if (!pid || syscall(SYS_move_pages, pid, nr, pages, nodes, status, MPOL_MF_MOVE_ALL) < 0)
		return 0;
	for (int i = 0; i < nr; i++)
		moved += status[i] == node;
	return moved;
}

static unsigned long migrate_processes(void)
{
	unsigned long from = 1 + random_below(2), to = 3 - from;
	pid_t pid = random_worker();

	usleep(50000);
	return pid && syscall(SYS_migrate_pages, pid, 8 * sizeof(from), &from, &to) >= 0;
}

static unsigned long compact(void)
{
	usleep(random_below(1000000));
	return write_setting("/proc/sys/vm/compact_memory", "1");
}

static unsigned long swap_off(void)
{
	sleep(2 + random_below(4));
	/* There may be too little memory for all of it. */
	return swap_off_and_on();
}

static unsigned long merge(void)
{
	static const char * const runs[] = { "1", "1", "1", "0", "2" };

	usleep(random_below(2000000));
	return write_setting(KSM "run", runs[random_below(5)]);
}

/*
 * Who comes to a page by its number does not keep its memory from going offline
 * meanwhile, and the kernel crashes if that happens, in v7.3 as well.
 */
static void lock_hotplug(void)
{
	lockf(shared_fd, F_LOCK, 0);
}

static void unlock_hotplug(void)
{
	lockf(shared_fd, F_ULOCK, 0);
}

static unsigned long scan_idle(void)
{
	int fd = open("/sys/kernel/mm/page_idle/bitmap", O_RDWR);
	uint64_t bits[512];
	off_t offset = 0;
	bool more = true;

	if (fd < 0) {
		sleep(1);
		return 0;
	}
	memset(bits, 0xff, sizeof(bits));
	while (more && !stopped()) {
		lock_hotplug();
		more = pwrite(fd, bits, sizeof(bits), offset) > 0;
		unlock_hotplug();
		offset += sizeof(bits);
	}
	close(fd);
	usleep(random_below(2000000));
	return 1;
}

static void on_alarm(int signal)
{
}

/* As long as a page there cannot be moved, the kernel tries again. */
static unsigned long take_offline(void)
{
	struct sigaction action = { .sa_handler = on_alarm };
	int nr, tries = 0;
	bool offline;

	sigaction(SIGALRM, &action, NULL);
	sleep(1 + random_below(3));
	do {
		nr = random_below(64);
		lock_hotplug();
		errno = 0;
		alarm(OFFLINE_SECONDS);
		offline = offline_block(nr);
		alarm(0);
		unlock_hotplug();
		if (offline) {
			usleep(random_below(100000));
			online_block(nr);
			return 1;
		}
	} while (errno == EINVAL && ++tries < 64);
	/* As arm64 does for all memory that was there at boot */
	count(&shared->refused, errno == EPERM);
	return 0;
}

static unsigned long reclaim_memory(void)
{
	char amount[32];

	usleep(random_below(500000));
	snprintf(amount, sizeof(amount), "%uM", 1 + random_below(64));
	/* It fails if there is less to be had. */
	return write_setting(CGROUP "/memory.reclaim", amount) || errno == EAGAIN;
}

/* Less than they have, for a moment */
static unsigned long squeeze(void)
{
	char value[64];

	usleep(random_below(2000000));
	if (!read_file(CGROUP "/memory.current", value, sizeof(value)))
		return 0;
	snprintf(value, sizeof(value), "%lu", strtoul(value, NULL, 0) / 8 * (4 + random_below(4)));
	if (!write_setting(CGROUP "/memory.high", value))
		return 0;
	usleep(random_below(300000));
	return write_setting(CGROUP "/memory.high", "max");
}

static unsigned long split_huge(void)
{
	pid_t pid = random_worker();
	char command[128];

	usleep(random_below(500000));
	snprintf(command, sizeof(command), "%d,%p,%p", pid, place_of(THP, 0),
		 place_of(THP, NR_PLACES));
	return pid && write_setting("/sys/kernel/debug/split_huge_pages", command);
}

static const struct {
	unsigned long (*run)(void);
	const char *name;
} disturbers[] = {
	{ move_pages_about, "moved_pages" },
	{ migrate_processes, "migrated_processes" },
	{ compact, "compacted" },
	{ swap_off, "swapped_off" },
	{ merge, "ksm" },
	{ scan_idle, "idle" },
	{ take_offline, "offlined" },
	{ reclaim_memory, "reclaimed" },
	{ squeeze, "squeezed" },
	{ split_huge, "split" },
};

static pid_t disturber_pids[ARRAY_SIZE(disturbers)];

/* Those that are chosen, and were not killed */
static void start_disturbers(unsigned long chosen, uint64_t seed)
{
	for (unsigned int i = 0; i < ARRAY_SIZE(disturbers); i++) {
		if (!(chosen & 1UL << i) || (disturber_pids[i] > 0 && !kill(disturber_pids[i], 0)))
			continue;
		disturber_pids[i] = fork();
		if (disturber_pids[i])
			continue;
		random_state = new_seed(seed, 1000 + i);
		while (!ends())
			count(&shared->disturbed[i], disturbers[i].run());
		_exit(0);
	}
}

#define THP_SETTINGS	"/sys/kernel/mm/transparent_hugepage/"

/* What there is of it; all of it makes pages move more often. */
static const struct {
	const char *path;
	const char *value;
} settings[] = {
	{ THP_SETTINGS "enabled", "madvise" },
	{ THP_SETTINGS "khugepaged/scan_sleep_millisecs", "10" },
	{ THP_SETTINGS "khugepaged/alloc_sleep_millisecs", "10" },
	{ THP_SETTINGS "khugepaged/pages_to_scan", "65536" },
	{ THP_SETTINGS "hugepages-2048kB/enabled", "madvise" },
	{ KSM "pages_to_scan", "1000" },
	{ KSM "sleep_millisecs", "5" },
	{ KSM "run", "1" },
	{ "/proc/sys/kernel/numa_balancing", "1" },
	{ "/sys/kernel/debug/sched/numa_balancing/scan_period_min_ms", "100" },
	{ "/sys/kernel/debug/sched/numa_balancing/scan_period_max_ms", "1000" },
	{ "/sys/kernel/debug/failslab/ignore-gfp-wait", "N" },
	{ "/sys/kernel/debug/failslab/verbose", "0" },
	{ "/sys/kernel/debug/fail_page_alloc/ignore-gfp-wait", "N" },
	{ "/sys/kernel/debug/fail_page_alloc/ignore-gfp-highmem", "N" },
	{ "/sys/kernel/debug/fail_page_alloc/min-order", "0" },
	{ "/sys/kernel/debug/fail_page_alloc/verbose", "0" },
};

/*
 * khugepaged gives way to all others, and here it would for so long that RCU, which it
 * keeps waiting when it is preempted, complains.
 */
static void do_not_starve_khugepaged(void)
{
	struct dirent *process;
	char path[300], name[32];
	DIR *processes = opendir("/proc");

	while (processes && (process = readdir(processes))) {
		snprintf(path, sizeof(path), "/proc/%s/comm", process->d_name);
		if (atoi(process->d_name) && read_file(path, name, sizeof(name)) &&
		    !strcmp(name, "khugepaged\n"))
			change_nice(atoi(process->d_name), 0);
	}
	if (processes)
		closedir(processes);
}

/* Huge pages that nobody has, on each node */
static void add_hugetlb(void)
{
	unsigned long size = hugetlb_flag ? HUGE : default_huge_page_size();
	char path[128], value[32];

	for (int node = 0; node < 2 && size <= HUGE; node++) {
		snprintf(path, sizeof(path),
			 "/sys/devices/system/node/node%d/hugepages/hugepages-%lukB/nr_hugepages",
			 node, size >> 10);
		if (read_setting(path, value, sizeof(value)))
			change_number(path, strtoul(value, NULL, 0) + 32);
	}
}

/* A group of its own, with memory to be limited; and where this process was */
static char home[300];
static bool gave_memory;

static void enter_cgroup(void)
{
	const char *control = "/sys/fs/cgroup/cgroup.subtree_control";
	FILE *group = fopen("/proc/self/cgroup", "r");
	char line[256], given[256] = "";

	while (group && fgets(line, sizeof(line), group))
		if (!strncmp(line, "0::", 3))
			snprintf(home, sizeof(home), "/sys/fs/cgroup%.*s/cgroup.procs",
				 (int)strcspn(line + 3, "\n"), line + 3);
	if (group)
		fclose(group);
	read_file(control, given, sizeof(given));
	gave_memory = !strstr(given, "memory") && write_setting(control, "+memory");
	mkdir(CGROUP, 0755);
	/* All that this process forks is in it, too. */
	write_setting(CGROUP "/cgroup.procs", "0");
}

static void leave_cgroup(void)
{
	write_setting(home, "0");
	rmdir(CGROUP);
	if (gave_memory)
		write_setting("/sys/fs/cgroup/cgroup.subtree_control", "-memory");
}

static void tune(void)
{
	unsigned long large = PAGE > (16UL << 10) ? 4 * PAGE : 64UL << 10;
	char path[128];

	for (unsigned int i = 0; i < ARRAY_SIZE(settings); i++)
		change_setting(settings[i].path, settings[i].value);
	snprintf(path, sizeof(path), THP_SETTINGS "hugepages-%lukB/enabled", large >> 10);
	change_setting(path, "always");
	add_hugetlb();
	do_not_starve_khugepaged();
	if (access("/sys/devices/system/memory", F_OK))
		count(&shared->refused, 1);
	enter_cgroup();
}

static void restore(void)
{
	write_setting(KSM "run", "2");
	put_back();
	leave_cgroup();
}

/* The bits for warnings, bad pages, oopses and lockups */
static unsigned long warnings(void)
{
	char value[32] = "";

	read_file("/proc/sys/kernel/tainted", value, sizeof(value));
	return strtoul(value, NULL, 0) & (1UL << 5 | 1UL << 7 | 1UL << 9 | 1UL << 14);
}

static void print_stacks(pid_t pid)
{
	static char stack[4096];
	struct dirent *thread;
	char path[512];
	DIR *threads;

	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	threads = opendir(path);
	while (threads && (thread = readdir(threads))) {
		snprintf(path, sizeof(path), "/proc/%d/task/%s/stack", pid, thread->d_name);
		if (read_file(path, stack, sizeof(stack)))
			ksft_print_msg("thread %s:\n%s", thread->d_name, stack);
	}
	if (threads)
		closedir(threads);
}

static void watch(void)
{
	time_t now = time(NULL);

	for (int i = 0; i < MAX_WORKERS; i++) {
		struct slot *slot = &shared->slots[i];
		time_t since = slot->since;
		pid_t pid = slot->pid;

		if (!pid || !since || slot->paused || now - since < HANG_SECONDS || kill(pid, 0))
			continue;
		print_stacks(pid);
		fail("pid %d hangs in %s", pid, operations[slot->operation].name);
	}
}

static unsigned long ksm_scans(void)
{
	char scans[32];

	return read_file(KSM "full_scans", scans, sizeof(scans)) ? strtoul(scans, NULL, 0) : 0;
}

/*
 * What KSM's list does not have, its next scan finds.  As pages still come from swap and
 * go there, a mapping may have come to be since.
 */
static void check_ksm(int fd)
{
	for (int tries = 0; checked("ksm_missed") > 0 && !stopped(); tries++) {
		unsigned long scans = ksm_scans();
		long missed = checked("ksm_missed");

		for (int i = 0; ksm_scans() < scans + 2 && i < 100; i++) {
			write_setting(KSM "run", "1");
			usleep(100000);
		}
		/* It may be kept from it, by memory that goes offline. */
		if (ksm_scans() < scans + 2)
			return;
		if (tries == 10) {
			fail("KSM does not find %ld mappings of its pages", missed);
			return;
		}
		if (write(fd, "1", 1) != 1)
			fail("the kernel's check: %s", strerror(errno));
	}
}

/* Between rounds, when no worker does anything, or comes or goes */
static void check_round(void)
{
	int fd = open(COW_CHECK, O_WRONLY);
	bool waits = true;

	if (fd < 0) {
		/* Who has built a kernel with it says so. */
		if (getenv("COW_CONTEXT_CHECK"))
			fail("%s: %s", COW_CHECK, strerror(errno));
		return;
	}
	__atomic_store_n(&shared->pause, true, __ATOMIC_RELEASE);
	while (waits && !stopped()) {
		usleep(10000);
		watch();
		reap();
		waits = false;
		for (int i = 0; i < MAX_WORKERS; i++)
			waits |= shared->slots[i].pid && !shared->slots[i].paused;
	}
	if (write(fd, "1", 1) != 1)
		fail("the kernel's check: %s", strerror(errno));
	check_ksm(fd);
	count(&shared->checks, 1);
	if (checked("planes") > 0)
		count(&shared->planes, checked("planes"));
	close(fd);
	__atomic_store_n(&shared->pause, false, __ATOMIC_RELEASE);
}

static void start_worker(uint64_t seed)
{
	pid_t pid;

	__atomic_add_fetch(&shared->live, 1, __ATOMIC_RELAXED);
	pid = fork();
	if (!pid)
		new_worker(seed);
	if (pid < 0)
		__atomic_sub_fetch(&shared->live, 1, __ATOMIC_RELAXED);
}

static void map_shared(void)
{
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED, shared_fd, 0);
	if (shared == MAP_FAILED)
		ksft_exit_fail_perror("mmap");
}

static void make_files(void)
{
	char *page = calloc(1, PAGE);

	shared_fd = memfd_create("shared", 0);
	file_fd = memfd_create("file", 0);
	if (!page || shared_fd < 0 || file_fd < 0 || ftruncate(shared_fd, sizeof(*shared)))
		ksft_exit_fail_perror("memfd");
	for (int i = 0; i < kinds[PRIVATE_FILE].pages; i++) {
		write_page(page, FILE_TAG | i);
		if (write(file_fd, page, PAGE) != (ssize_t)PAGE)
			ksft_exit_fail_perror("write");
	}
	free(page);
	map_shared();
}

/* What the kernel does seldom, and has done in a run that is to say something of it */
static const char * const rare[] = { "widened", "narrowed", "sole_mappings", "held_vmas" };

static void print_counts(void)
{
	FILE *check = fopen(COW_CHECK, "r");
	char line[128];

	ksft_print_msg("read %lu times, written %lu times, %lu forks, %d workers, %lu checks\n",
		       shared->reads, shared->writes, shared->forks, shared->serial,
		       shared->checks);
	ksft_print_msg("the checks saw %lu mappings with offsets of their own\n", shared->planes);
	if (shared->injects)
		ksft_print_msg("up to %lu allocations failed\n", shared->injected);
	for (unsigned int i = 0; i < ARRAY_SIZE(operations); i++)
		ksft_print_msg("%s: %lu\n", operations[i].name, shared->done[i]);
	for (unsigned int i = 0; i < ARRAY_SIZE(disturbers); i++)
		ksft_print_msg("%s: %lu\n", disturbers[i].name, shared->disturbed[i]);
	while (check && fgets(line, sizeof(line), check))
		ksft_print_msg("%s", line);
	if (check)
		fclose(check);
}

static unsigned long oom_kills(void)
{
	FILE *vmstat = fopen("/proc/vmstat", "r");
	unsigned long value, kills = 0;
	char line[128];

	while (vmstat && fgets(line, sizeof(line), vmstat))
		if (sscanf(line, "oom_kill %lu", &value) == 1)
			kills = value;
	if (vmstat)
		fclose(vmstat);
	return kills;
}

static const char * const caches[] = { "mm_struct", "cow_context", "cow_moved" };
static long in_use[ARRAY_SIZE(caches)];

/* Nothing is there that was not before, or nothing much; kfree_rcu() takes its time. */
static bool nothing_left(bool complains)
{
	bool nothing = true;

	visit_cpus();
	for (unsigned int i = 0; i < ARRAY_SIZE(caches); i++) {
		long now, most = in_use[i] + slab_slack(caches[i], 5000 + shared->forks);

		if (in_use[i] < 0)
			continue;
		shrink_slab(caches[i]);
		now = slab_objects(caches[i]);
		nothing &= now <= most;
		if (complains && now > most)
			fail("%s: %ld in use, and %ld before", caches[i], now, in_use[i]);
	}
	return nothing;
}

static unsigned long option(const char *name, unsigned long otherwise)
{
	const char *value = getenv(name);

	return value && *value ? strtoul(value, NULL, 0) : otherwise;
}

static bool interrupted;

/* The end of the time, for whoever gets a signal */
static void on_end(int signal)
{
	interrupted = true;
	__atomic_store_n(&shared->stop, true, __ATOMIC_RELEASE);
}

/* Those who hang, when all else has ended */
static void kill_all(void)
{
	for (int i = 0; i < MAX_WORKERS; i++)
		if (shared->slots[i].pid > 0)
			kill(shared->slots[i].pid, SIGKILL);
	for (unsigned int i = 0; i < ARRAY_SIZE(disturbers); i++)
		if (disturber_pids[i] > 0)
			kill(disturber_pids[i], SIGKILL);
}

/* Is it nothing that this kernel can do? */
static bool impossible(unsigned int operation, bool poisons)
{
	bool (*run)(struct region *region) = operations[operation].run;

	return (shared->injects && run == grow) ||
	       (!poisons && (run == soft_offline || run == break_page));
}

int main(int argc, char **argv)
{
	unsigned long seconds = option("STRESS_SECONDS", 20), round_seconds, seed;
	unsigned long chosen = option("STRESS_DISTURBERS", -1UL), old_warnings = warnings();
	unsigned long old_kills = oom_kills();
	int round, started = 0;
	time_t begin, round_end;
	bool poisons;

	size_kinds();
	if (argc == 5 && !strcmp(argv[1], "worker")) {
		shared_fd = atoi(argv[3]);
		file_fd = atoi(argv[4]);
		map_shared();
		new_worker(strtoul(argv[2], NULL, 0));
	}

	ksft_print_header();
	make_files();
	begin_changes(&shared->changes, on_end);
	if (!may_change())
		ksft_exit_skip("changes settings, swap and memory, which " NEEDS_DESTRUCTIVE
			       "\n");
	ksft_set_plan(1);
	shared->main = getpid();
	poisons = may_poison();
	seed = option("STRESS_SEED", time(NULL));
	round_seconds = option("STRESS_ROUND", 5);
	shared->max_live = option("STRESS_WORKERS", 16);
	shared->injects = option("STRESS_FAIL", 0);
	ksft_print_msg("STRESS_SEED=%lu STRESS_SECONDS=%lu STRESS_ROUND=%lu STRESS_WORKERS=%d\n",
		       seed, seconds, round_seconds, shared->max_live);
	if (shared->max_live > MAX_WORKERS - 8)
		ksft_exit_fail_msg("at most %d workers\n", MAX_WORKERS - 8);
	if (chosen || shared->injects)
		tune();
	for (unsigned int i = 0; i < ARRAY_SIZE(caches); i++) {
		shrink_slab(caches[i]);
		in_use[i] = slab_objects(caches[i]);
		if (slab_not_counted(caches[i]))
			ksft_print_msg("%s: %s\n", caches[i], slab_not_counted(caches[i]));
	}

	begin = time(NULL);
	for (round = 1; time(NULL) - begin < (time_t)seconds && !stopped(); round++) {
		round_end = time(NULL) + round_seconds;
		while (time(NULL) < round_end && !stopped()) {
			start_disturbers(chosen, seed + round);
			if (shared->live <= shared->max_live / 2)
				start_worker(new_seed(seed, started++));
			usleep(100000);
			watch();
			reap();
		}
		check_round();
		ksft_print_msg("round %d, after %ld s: %d workers of %d, %lu pages moved\n",
			       round, (long)(time(NULL) - begin), shared->live, shared->serial,
			       shared->disturbed[0]);
	}

	/* A worker that hangs does not end. */
	__atomic_store_n(&shared->stop, true, __ATOMIC_RELEASE);
	for (begin = time(NULL); reap() && time(NULL) - begin < HANG_SECONDS; usleep(10000))
		;
	if (reap()) {
		fail("not all processes end");
		kill_all();
	}
	/* KSM refers to mms until it is told to leave them alone. */
	if (chosen || shared->injects)
		restore();
	if (interrupted)
		ksft_exit_fail_msg("interrupted\n");
	for (int i = 0; i < 200 && !nothing_left(i == 199); i++)
		usleep(100000);
	if (!shared->reads)
		fail("no page was looked at");
	if (shared->injects && !shared->injected)
		fail("no allocation failed");
	if (shared->killed > oom_kills() - old_kills)
		fail("%lu killed, and %lu of them for want of memory", shared->killed,
		     oom_kills() - old_kills);
	for (unsigned int i = 0; i < ARRAY_SIZE(operations) && seconds >= 300; i++)
		if (!shared->done[i] && !impossible(i, poisons))
			fail("%s was never done", operations[i].name);
	for (unsigned int i = 0; i < ARRAY_SIZE(disturbers) && seconds >= 300; i++)
		if (!shared->disturbed[i] && chosen & 1UL << i &&
		    !(shared->refused && disturbers[i].run == take_offline))
			fail("nothing was ever %s", disturbers[i].name);
	for (unsigned int i = 0; i < ARRAY_SIZE(rare) && seconds >= 300 && chosen == -1UL; i++)
		if (!checked(rare[i]))
			fail("%s is still 0", rare[i]);
	if (!shared->planes && shared->checks && seconds >= 300 && chosen == -1UL)
		fail("no mapping got offsets of its own");
	if (warnings() != old_warnings)
		fail("the kernel has warned");
	print_counts();
	if (shared->failed)
		ksft_print_msg("%s\n", shared->failure);
	ksft_test_result(!shared->failed, "all memory is what it was\n");
	ksft_finished();
}
