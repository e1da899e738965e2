// SPDX-License-Identifier: GPL-2.0
/*
 * COW contexts: what user space can see of them.
 *
 * Lifetime: contexts live and die with the fork tree.  None is left behind, whatever
 * the order of forks and exits, and no line of forks collects dead ones.
 *
 * Mappings: each mapping of an anonymous folio is found.  Pages are moved to the other
 * node, which works only if all mappings were found, and then must be the same page,
 * with the same contents, in each process that shared it before.
 *
 * Races: pages are moved all the time while what maps them comes, moves and goes.  A
 * mapping that is missed on the way keeps a migration entry for a page that nobody
 * has: who touches it hangs, and who unmaps it makes the kernel complain.
 */
#define _GNU_SOURCE
#include <alloca.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
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

#include "kselftest_harness.h"
#include "vm_util.h"
#include "hugepage_settings.h"
#include "cow_context_changes.h"
#include "cow_context_slab.h"

#ifndef MAP_HUGE_SHIFT
#define MAP_HUGE_SHIFT	26
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE	25
#endif

/* Or what the environment says */
#define NR_FORKS	10000
#define NR_GENERATIONS	20000
#define MAX_LIVE	100

/* Dead contexts that one living line of forks may keep, see COW_CONTEXT_MAX_DEPTH */
#define MAX_DEAD	32

/* What all processes of a test share */
struct shared {
	int generations;
	int forks;
	int max_forks;
	int live;
	int failed;
	int paused;
	unsigned long moved;	/* pages */
	int stop;
};

/* Contexts beyond one per mm */
static long count_spare(void)
{
	visit_cpus();
	shrink_slab("cow_context");
	shrink_slab("mm_struct");
	return slab_objects("cow_context") - slab_objects("mm_struct");
}

/* kfree_rcu() may take its time, some seconds, with those that are dead. */
static long spare_contexts(long expected)
{
	long spare = count_spare();
	int tries;

	for (tries = 0; tries < 200 && spare > expected; tries++) {
		usleep(100 * 1000);
		spare = count_spare();
	}
	return spare;
}

static void reap_all(void)
{
	while (waitpid(-1, NULL, 0) > 0 || errno != ECHILD)
		;
}

/*
 * Forks, and goes on in parent and child alike, each of which may exit at any time,
 * but for the last one.
 */
static void fork_and_exit(struct shared *shared, unsigned int seed)
{
	for (;;) {
		int number = __atomic_add_fetch(&shared->forks, 1, __ATOMIC_RELAXED);
		int live;

		if (number > shared->max_forks)
			break;

		live = __atomic_add_fetch(&shared->live, 1, __ATOMIC_RELAXED);
		switch (fork()) {
		case -1:
			__atomic_add_fetch(&shared->failed, 1, __ATOMIC_RELAXED);
			__atomic_sub_fetch(&shared->live, 1, __ATOMIC_RELAXED);
			continue;
		case 0:
			seed += number;
		}

		if (live > MAX_LIVE || rand_r(&seed) % 2) {
			/* With a second look, as others leave at the same time. */
			if (__atomic_sub_fetch(&shared->live, 1, __ATOMIC_RELAXED) > 0)
				_exit(0);
			__atomic_add_fetch(&shared->live, 1, __ATOMIC_RELAXED);
		}
		if (rand_r(&seed) % 4 == 0)
			usleep(rand_r(&seed) % 2000);
	}
	_exit(0);
}

/*
 * The least of them in some seconds: other processes may have dead ones, too.  In a
 * machine where there are no others, the environment says how many there are at most.
 */
static long spare_before(void)
{
	const char *known = getenv("SPARE_CONTEXTS");
	long spare, least;
	int same;

	if (known)
		return spare_contexts(atol(known));
	least = count_spare();
	for (same = 0; same < 30; same++) {
		usleep(100 * 1000);
		spare = count_spare();
		if (spare < least) {
			least = spare;
			same = 0;
		}
	}
	return least;
}

FIXTURE(lifetime)
{
	struct shared *shared;
	long spare;
};

FIXTURE_SETUP(lifetime)
{
	const char *why = slab_not_counted("cow_context") ?: slab_not_counted("mm_struct");
	const char *known = getenv("SPARE_CONTEXTS");

	if (why)
		SKIP(return, "%s", why);

	self->shared = mmap(NULL, sizeof(*self->shared), PROT_READ | PROT_WRITE,
			    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(self->shared, MAP_FAILED);
	/* Orphans come to this process. */
	ASSERT_EQ(prctl(PR_SET_CHILD_SUBREAPER, 1), 0);
	self->spare = spare_before();
	if (known)
		ASSERT_LE(self->spare, atol(known));
}

FIXTURE_TEARDOWN(lifetime)
{
	munmap(self->shared, sizeof(*self->shared));
}

TEST_F_TIMEOUT(lifetime, forks_with_exits_in_random_order, 600)
{
	const char *forks = getenv("NR_FORKS");
	struct shared *shared = self->shared;
	long most;
	pid_t pid;

	shared->max_forks = forks ? atoi(forks) : NR_FORKS;
	most = self->spare + slab_slack("cow_context", shared->max_forks);
	shared->live = 1;
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid)
		fork_and_exit(shared, 1);
	reap_all();

	ASSERT_GE(shared->forks, shared->max_forks);
	ASSERT_EQ(shared->failed, 0);
	ASSERT_LE(spare_contexts(most), most);
}

/* Each generation ends when it has made the next one. */
static void fork_chain(struct shared *shared)
{
	while (shared->forks < shared->generations) {
		if (++shared->forks % (shared->generations / 10) == 0) {
			__atomic_store_n(&shared->paused, 1, __ATOMIC_RELEASE);
			while (__atomic_load_n(&shared->paused, __ATOMIC_ACQUIRE))
				usleep(1000);
		}
		switch (fork()) {
		case -1:
			shared->failed++;
			_exit(1);
		case 0:
			continue;
		}
		_exit(0);
	}
	_exit(0);
}

TEST_F_TIMEOUT(lifetime, chain_of_forks_is_bounded, 600)
{
	const char *generations = getenv("NR_GENERATIONS");
	struct shared *shared = self->shared;
	long most = 0, others;
	pid_t pid;

	shared->generations = generations ? atoi(generations) : NR_GENERATIONS;
	ASSERT_GE(shared->generations, 10);
	others = self->spare + slab_slack("cow_context", shared->generations);

	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid)
		fork_chain(shared);

	for (;;) {
		pid = waitpid(-1, NULL, WNOHANG);
		if (pid < 0)
			break;
		if (__atomic_load_n(&shared->paused, __ATOMIC_ACQUIRE)) {
			long spare = spare_contexts(others + MAX_DEAD);

			TH_LOG("%d generations: %ld contexts more than mms, %ld before",
			       shared->forks, spare, self->spare);
			if (spare > most)
				most = spare;
			__atomic_store_n(&shared->paused, 0, __ATOMIC_RELEASE);
		} else if (!pid) {
			usleep(1000);
		}
	}

	EXPECT_LE(most, others + MAX_DEAD);
	EXPECT_EQ(shared->forks, shared->generations);
	EXPECT_EQ(shared->failed, 0);
	EXPECT_LE(spare_contexts(others), others);
}

#define NR_KEPT		200

/* Who holds on to an mm_struct does not keep its context in the way of walks. */
TEST_F_TIMEOUT(lifetime, context_goes_before_the_mm_struct, 300)
{
	long contexts, mms, after = 0;
	int fds[NR_KEPT], i, tries;

	visit_cpus();
	shrink_slab("cow_context");
	contexts = slab_objects("cow_context") + slab_slack("cow_context", 100 * NR_KEPT / 4);
	mms = slab_objects("mm_struct");
	for (i = 0; i < NR_KEPT; i++) {
		char path[64];
		pid_t pid = fork();

		ASSERT_GE(pid, 0);
		if (!pid)
			for (;;)
				pause();
		snprintf(path, sizeof(path), "/proc/%d/mem", pid);
		fds[i] = open(path, O_RDONLY);
		ASSERT_GE(fds[i], 0);
		kill(pid, SIGKILL);
		ASSERT_EQ(waitpid(pid, NULL, 0), pid);
	}
	EXPECT_GE(slab_objects("mm_struct"), mms + NR_KEPT / 2);
	for (tries = 0; tries < 200; tries++) {
		shrink_slab("cow_context");
		after = slab_objects("cow_context");
		if (after <= contexts)
			break;
		usleep(100 * 1000);
	}
	EXPECT_LE(after, contexts);
	while (i--)
		close(fds[i]);
}

/* Moves pages so that each is a VMA of its own, which is in the index as a moved one */
static bool move_one_by_one(char *from, char *to, int nr)
{
	int i;

	for (i = 0; i < nr; i++) {
		char *place = to + (nr - 1 - i) * psize();

		if (mremap(from + i * psize(), psize(), psize(),
			   MREMAP_MAYMOVE | MREMAP_FIXED, place) != place)
			return false;
	}
	return true;
}

#define NR_MOVERS	50
#define NR_MOVED	100

/* What exit leaves in the index of moved VMAs goes with it, and what a fork has copied. */
TEST_F_TIMEOUT(lifetime, moved_vmas_go_with_their_mm, 300)
{
	const char *why = slab_not_counted("cow_moved");
	size_t size = NR_MOVED * psize();
	long before, after, mms;
	int i, status, tries;
	char *from, *to;

	if (why)
		SKIP(return, "%s", why);
	from = mmap(NULL, 2 * size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(from, MAP_FAILED);
	to = from + size;
	shrink_slab("cow_moved");
	before = slab_objects("cow_moved");
	mms = slab_objects("mm_struct");

	for (i = 0; i < NR_MOVERS; i++) {
		pid_t pid = fork();

		ASSERT_GE(pid, 0);
		if (!pid) {
			memset(from, 1, size);
			if (!move_one_by_one(from, to, NR_MOVED))
				_exit(1);
			if (i % 2)
				munmap(to, size / 2);
			fork();
			if (slab_objects("cow_moved") < before + NR_MOVED / 2)
				_exit(2);
			_exit(0);
		}
		ASSERT_EQ(waitpid(pid, &status, 0), pid);
		ASSERT_EQ(status, 0);
	}
	reap_all();
	before += slab_slack("cow_moved", NR_MOVERS * NR_MOVED);
	mms += slab_slack("mm_struct", NR_MOVERS * NR_MOVED);
	for (tries = 0; tries < 200; tries++) {
		visit_cpus();
		shrink_slab("cow_moved");
		shrink_slab("mm_struct");
		after = slab_objects("cow_moved");
		if (after <= before && slab_objects("mm_struct") <= mms)
			break;
		usleep(100 * 1000);
	}
	EXPECT_LE(after, before);
	EXPECT_LE(slab_objects("mm_struct"), mms);
	munmap(from, 2 * size);
}

/* The memory that a test is about: some units, each of which is a page, or huge */
#define MAX_UNITS	16
#define MAX_MAPPERS	24

enum kind { ANON, PRIVATE_FILE, THP, HUGETLB };

/*
 * Of one size each, or 0: those that one PMD maps are too large where pages are 64K.
 * hugetlb has others then, too, and so have THP where they are asked for.
 */
#define MAX_HUGE	(32UL << 20)

static size_t thp_size, hugetlb_size;

static void __attribute__((constructor)) find_sizes(void)
{
	thp_size = read_pmd_pagesize();
	if (thp_size > MAX_HUGE)
		thp_size = HPAGE_SIZE;
	hugetlb_size = HPAGE_SIZE;
	if (access("/sys/kernel/mm/hugepages/hugepages-2048kB", F_OK))
		hugetlb_size = default_huge_page_size();
}

static size_t unit_size(enum kind kind)
{
	return kind == THP ? thp_size : kind == HUGETLB ? hugetlb_size : psize();
}

static int nr_units(enum kind kind)
{
	return kind == THP || kind == HUGETLB ? 4 : MAX_UNITS;
}

/* A process that maps it, and where */
struct mapper {
	pid_t pid;
	char *addr;
};

/* All of them, in memory that they share */
struct family {
	struct mapper mappers[MAX_MAPPERS];
	int nr;
	size_t unit;
	int units;
	int failed;
};

/* Addresses that nothing else will have, aligned as huge pages of a size want it */
static char *reserve_for(size_t huge, size_t size)
{
	char *addr = mmap(NULL, size + huge, PROT_NONE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (addr == MAP_FAILED)
		return NULL;
	return huge ? (char *)(((unsigned long)addr + huge - 1) & ~(huge - 1)) : addr;
}

static char *reserve(size_t size)
{
	return reserve_for(thp_size > hugetlb_size ? thp_size : hugetlb_size, size);
}

static char *map_at(char *addr, enum kind kind, size_t size)
{
	int flags = MAP_PRIVATE | MAP_FIXED, fd = -1;
	char *got;

	if (kind == PRIVATE_FILE) {
		fd = memfd_create("cow_context", 0);
		if (fd < 0 || ftruncate(fd, size))
			return NULL;
	} else {
		flags |= MAP_ANONYMOUS;
	}
	if (kind == HUGETLB)
		flags |= MAP_HUGETLB | __builtin_ctzl(hugetlb_size) << MAP_HUGE_SHIFT;

	got = mmap(addr, size, PROT_READ | PROT_WRITE, flags, fd, 0);
	if (fd >= 0)
		close(fd);
	if (got == MAP_FAILED)
		return NULL;
	if (kind == THP)
		madvise(got, size, MADV_HUGEPAGE);
	return got;
}

static unsigned long *first_word(char *unit)
{
	return (unsigned long *)unit;
}

static unsigned long *last_word(char *unit, size_t size)
{
	return (unsigned long *)(unit + size) - 1;
}

static void fill(char *addr, int units, size_t unit, unsigned long seed)
{
	int i;

	for (i = 0; i < units; i++, addr += unit) {
		__atomic_store_n(first_word(addr), seed + i, __ATOMIC_RELAXED);
		__atomic_store_n(last_word(addr, unit), ~(seed + i), __ATOMIC_RELAXED);
	}
}

static bool filled(char *addr, int units, size_t unit, unsigned long seed)
{
	int i;

	for (i = 0; i < units; i++, addr += unit) {
		if (__atomic_load_n(first_word(addr), __ATOMIC_RELAXED) != seed + i ||
		    __atomic_load_n(last_word(addr, unit), __ATOMIC_RELAXED) != ~(seed + i))
			return false;
	}
	return true;
}

static void join(struct family *family, pid_t pid, char *addr)
{
	int nr = family->nr;

	family->mappers[nr].pid = pid;
	family->mappers[nr].addr = addr;
	__atomic_store_n(&family->nr, nr + 1, __ATOMIC_RELEASE);
}

/*
 * Forks a process that does with the memory at @addr what @act says, joins the family
 * with the address that this returns, and waits for its end; for the time until then
 * the caller waits.
 */
static pid_t spawn(struct family *family, char *(*act)(struct family *, char *), char *addr)
{
	int nr = family->nr;
	pid_t pid = fork();

	if (!pid) {
		if (act)
			addr = act(family, addr);
		if (!addr) {
			__atomic_store_n(&family->failed, 1, __ATOMIC_RELEASE);
			_exit(1);
		}
		join(family, getpid(), addr);
		for (;;)
			pause();
	}
	while (pid > 0 && __atomic_load_n(&family->nr, __ATOMIC_ACQUIRE) == nr &&
	       !__atomic_load_n(&family->failed, __ATOMIC_ACQUIRE))
		usleep(1000);
	if (pid < 0 || family->failed) {
		family->failed = 1;
		return -1;
	}
	/* More than one if it has a family of its own. */
	while (family->mappers[family->nr - 1].pid != pid && !family->failed)
		usleep(1000);
	return family->failed ? -1 : pid;
}

/* Takes a process out of the family, for good */
static void bury(struct family *family, pid_t pid)
{
	int i, left = 0;

	for (i = 0; i < family->nr; i++)
		if (family->mappers[i].pid != pid)
			family->mappers[left++] = family->mappers[i];
	family->nr = left;
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

static uint64_t pagemap_of(pid_t pid, char *addr)
{
	char path[64];
	uint64_t entry;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/pagemap", pid);
	fd = open(path, O_RDONLY);
	if (fd < 0)
		return 0;
	entry = pagemap_get_entry(fd, addr);
	close(fd);
	return entry;
}

static bool same_pages(struct family *family)
{
	int i, m;

	for (i = 0; i < family->units; i++) {
		uint64_t first = pagemap_of(family->mappers[0].pid,
					    family->mappers[0].addr + i * family->unit);

		if (!(first & PM_PRESENT))
			return false;
		for (m = 1; m < family->nr; m++) {
			uint64_t entry = pagemap_of(family->mappers[m].pid,
						    family->mappers[m].addr + i * family->unit);

			if (!(entry & PM_PRESENT) || PAGEMAP_PFN(entry) != PAGEMAP_PFN(first))
				return false;
		}
	}
	return true;
}

/* Not by process_vm_readv(), which pins and so takes a copy */
static ssize_t read_of(pid_t pid, const char *addr, char *to, size_t size)
{
	char path[64];
	ssize_t done;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/mem", pid);
	fd = open(path, O_RDONLY);
	if (fd < 0)
		return -1;
	done = pread(fd, to, size, (unsigned long)addr);
	close(fd);
	return done;
}

static bool same_contents(struct family *family, unsigned long seed)
{
	size_t size = family->units * family->unit;
	char *copy = malloc(size);
	bool same = true;
	int m;

	for (m = 0; m < family->nr && same; m++)
		same = read_of(family->mappers[m].pid, family->mappers[m].addr, copy,
			       size) == (ssize_t)size &&
		       filled(copy, family->units, family->unit, seed);
	free(copy);
	return same;
}

/* Moves the pages of a process, wherever else they are mapped; how many are there now? */
static int move_to(struct mapper *mapper, int units, size_t unit, int node)
{
	int nodes[MAX_UNITS], status[MAX_UNITS], i, tries, there = 0;
	void *pages[MAX_UNITS];

	for (i = 0; i < units; i++) {
		pages[i] = mapper->addr + i * unit;
		nodes[i] = node;
	}
	/* Somebody may have looked at a page in passing. */
	for (tries = 0; tries < 20 && there < units; tries++) {
		if (tries)
			usleep(10000);
		if (syscall(SYS_move_pages, mapper->pid, units, pages, nodes, status,
			    MPOL_MF_MOVE_ALL) < 0)
			return -errno;
		for (i = there = 0; i < units; i++)
			there += status[i] == node;
	}
	return there;
}

/* Does the kernel's own check find nothing wrong, if it has one? */
static bool check_passes(void)
{
	int fd = open(COW_CHECK, O_WRONLY);
	bool passes;

	/* Who has built a kernel with it says so. */
	if (fd < 0)
		return !getenv("COW_CONTEXT_CHECK");
	passes = write(fd, "1", 1) == 1;
	close(fd);
	return passes;
}

/* Each mapping is found from each process, and the memory is what it was */
static void expect_all_found(struct __test_metadata *_metadata, struct family *family,
			     unsigned long seed)
{
	int m, node;

	EXPECT_EQ(family->failed, 0);
	EXPECT_TRUE(check_passes());
	EXPECT_TRUE(same_contents(family, seed));
	EXPECT_TRUE(same_pages(family));
	for (m = 0; m < family->nr; m++) {
		for (node = 0; node < 2; node++) {
			EXPECT_EQ(move_to(&family->mappers[m], family->units, family->unit,
					  node), family->units) {
				TH_LOG("from process %d of %d to node %d", m, family->nr, node);
			}
			EXPECT_TRUE(same_pages(family));
		}
	}
	EXPECT_TRUE(same_contents(family, seed));
	EXPECT_TRUE(check_passes());
}

/* Why pages of this and other processes cannot be moved, or NULL */
static const char *not_moved(void)
{
	if (geteuid())
		return "needs root, to move pages that others map, too";
	if (access("/sys/devices/system/node/node1", F_OK))
		return "needs two NUMA nodes";
	/* What a test that ran into its timeout has left */
	put_back();
	return NULL;
}

/* On each node, so many more that nobody has; why are there none, or NULL? */
static const char *need_hugetlb(unsigned long nr)
{
	static char reason[128];
	char path[128], *file;
	int node;

	if (!hugetlb_size)
		return "needs hugetlb";
	if (!may_change())
		return "changes the pool of huge pages, which " NEEDS_DESTRUCTIVE;
	for (node = 0; node < 2; node++) {
		unsigned long had, free;

		file = path + snprintf(path, sizeof(path),
				       "/sys/devices/system/node/node%d/hugepages/hugepages-%zukB/",
				       node, hugetlb_size >> 10);
		strcpy(file, "free_hugepages");
		free = read_num(path);
		strcpy(file, "nr_hugepages");
		had = read_num(path);
		if (free < nr)
			change_number(path, had + nr - free);
		strcpy(file, "free_hugepages");
		if (read_num(path) >= nr)
			continue;
		snprintf(reason, sizeof(reason), "needs %lu huge pages of %zu kB on each node",
			 nr, hugetlb_size >> 10);
		put_back();
		return reason;
	}
	return NULL;
}

/* Why memory that is advised to have huge pages has none, or NULL */
static const char *need_thp(void)
{
	const char *enabled = "/sys/kernel/mm/transparent_hugepage/enabled";
	char path[128], value[32];

	if (!thp_size)
		return "needs THP";
	snprintf(path, sizeof(path), "/sys/kernel/mm/transparent_hugepage/hugepages-%zukB/enabled",
		 thp_size >> 10);
	if (!read_setting(path, value, sizeof(value)))
		return "needs THP of 2M";
	if (!strcmp(value, "inherit") && !read_setting(enabled, value, sizeof(value)))
		return "needs THP";
	if (strcmp(value, "never"))
		return NULL;
	if (!may_change())
		return "enables THP, which " NEEDS_DESTRUCTIVE;
	return change_setting(path, "madvise") ? NULL : "needs THP that can be enabled";
}

/* Is the memory in so many huge pages?  Those that are not of a PMD are not counted as such. */
static bool is_huge(char *addr, size_t size, int nr)
{
	int orders[20] = {}, order = sz2ord(thp_size, psize()), pagemap, flags, ret;

	if (thp_size == read_pmd_pagesize())
		return check_huge_anon(addr, size, nr, thp_size);
	pagemap = open("/proc/self/pagemap", O_RDONLY);
	flags = open("/proc/kpageflags", O_RDONLY);
	ret = gather_folio_orders(addr, size, pagemap, flags, orders, order + 1);
	close(pagemap);
	close(flags);
	return !ret && orders[order] == nr;
}

static struct family *new_family(void)
{
	struct family *family = mmap(NULL, sizeof(*family), PROT_READ | PROT_WRITE,
				     MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	return family == MAP_FAILED ? NULL : family;
}

static void end_family(struct family *family)
{
	int m;

	for (m = 0; m < family->nr; m++)
		if (family->mappers[m].pid != getpid())
			kill(family->mappers[m].pid, SIGKILL);
	reap_all();
	munmap(family, sizeof(*family));
}

FIXTURE(mapped)
{
	struct family *family;
	size_t size;
	char *addr;
};

FIXTURE_VARIANT(mapped)
{
	enum kind kind;
};

FIXTURE_VARIANT_ADD(mapped, anon)
{
	.kind = ANON,
};

FIXTURE_VARIANT_ADD(mapped, private_file)
{
	.kind = PRIVATE_FILE,
};

FIXTURE_VARIANT_ADD(mapped, thp)
{
	.kind = THP,
};

FIXTURE_VARIANT_ADD(mapped, hugetlb)
{
	.kind = HUGETLB,
};

#define SEED	0x1000

FIXTURE_SETUP(mapped)
{
	const char *why = not_moved();

	if (!why && variant->kind == HUGETLB)
		why = need_hugetlb(16);
	if (!why && variant->kind == THP)
		why = need_thp();
	if (why)
		SKIP(return, "%s", why);

	self->family = new_family();
	ASSERT_NE(self->family, NULL);
	/* Processes whose parent is gone are this one's to end. */
	ASSERT_EQ(prctl(PR_SET_CHILD_SUBREAPER, 1), 0);

	self->family->unit = unit_size(variant->kind);
	self->family->units = nr_units(variant->kind);
	self->size = self->family->unit * self->family->units;
	self->addr = map_at(reserve(self->size), variant->kind, self->size);
	ASSERT_NE(self->addr, NULL);
	fill(self->addr, self->family->units, self->family->unit, SEED);
	if (variant->kind == THP)
		ASSERT_TRUE(is_huge(self->addr, self->size, self->family->units));
}

FIXTURE_TEARDOWN(mapped)
{
	end_family(self->family);
	munmap(self->addr, self->size);
	put_back();
}

static char *with_a_child(struct family *family, char *addr)
{
	return spawn(family, NULL, addr) < 0 ? NULL : addr;
}

static char *with_a_line(struct family *family, char *addr)
{
	return spawn(family, with_a_child, addr) < 0 ? NULL : addr;
}

/* Parents come before children, and the dead are passed over */
TEST_F_TIMEOUT(mapped, in_forks_of_forks, 300)
{
	struct family *family = self->family;
	pid_t middle;

	join(family, getpid(), self->addr);
	ASSERT_GT(spawn(family, NULL, self->addr), 0);
	ASSERT_GT(spawn(family, with_a_line, self->addr), 0);
	expect_all_found(_metadata, family, SEED);

	middle = family->mappers[3].pid;
	bury(family, middle);
	EXPECT_EQ(family->nr, 4);
	expect_all_found(_metadata, family, SEED);
}

/* The one that had the memory first is gone, and its own parent never had it */
TEST_F_TIMEOUT(mapped, in_forks_without_parent, 300)
{
	struct family *family = self->family;

	ASSERT_GT(spawn(family, with_a_line, self->addr), 0);
	EXPECT_EQ(munmap(self->addr, self->size), 0);
	bury(family, family->mappers[2].pid);
	EXPECT_EQ(family->nr, 2);
	expect_all_found(_metadata, family, SEED);
}

static char *move_mapping(struct family *family, char *addr, int flags)
{
	size_t size = family->unit * family->units;
	char *to = reserve(size);

	if (!to || mremap(addr, size, size, MREMAP_MAYMOVE | MREMAP_FIXED | flags, to) != to)
		return NULL;
	return to;
}

static char *moves(struct family *family, char *addr)
{
	return move_mapping(family, addr, 0);
}

/* Makes several VMAs of one, in place */
static char *splits(struct family *family, char *addr)
{
	if (mprotect(addr + family->unit, family->unit, PROT_READ) ||
	    mprotect(addr + 2 * family->unit, family->unit, PROT_NONE) ||
	    mprotect(addr + 2 * family->unit, family->unit, PROT_READ))
		return NULL;
	return addr;
}

static char *moves_and_splits(struct family *family, char *addr)
{
	addr = moves(family, addr);
	return addr ? splits(family, addr) : NULL;
}

static char *moves_away_and_back(struct family *family, char *addr)
{
	size_t size = family->unit * family->units;
	char *to = move_mapping(family, addr, 0);

	if (!to || mremap(to, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, addr) != addr)
		return NULL;
	return addr;
}

/* The address no longer follows from the page: in the child, its child, after splits */
TEST_F_TIMEOUT(mapped, where_moved, 300)
{
	struct family *family = self->family;

	join(family, getpid(), self->addr);
	ASSERT_GT(spawn(family, moves, self->addr), 0);
	ASSERT_GT(spawn(family, moves_and_splits, self->addr), 0);
	ASSERT_GT(spawn(family, splits, self->addr), 0);
	ASSERT_GT(spawn(family, moves_away_and_back, self->addr), 0);
	expect_all_found(_metadata, family, SEED);
}

/* The same where fork and split copy a VMA that was moved before */
TEST_F_TIMEOUT(mapped, where_forked_after_move, 300)
{
	struct family *family = self->family;

	self->addr = moves(family, self->addr);
	ASSERT_NE(self->addr, NULL);
	join(family, getpid(), self->addr);
	ASSERT_GT(spawn(family, with_a_child, self->addr), 0);
	ASSERT_GT(spawn(family, moves_and_splits, self->addr), 0);
	ASSERT_GT(spawn(family, splits, self->addr), 0);
	ASSERT_NE(splits(family, self->addr), NULL);
	ASSERT_GT(spawn(family, with_a_child, self->addr), 0);
	expect_all_found(_metadata, family, SEED);
}

/* Who lives below the depth where contexts own folios: theirs belong to an ancestor. */
TEST_F_TIMEOUT(mapped, below_the_limit, 300)
{
	struct family *family = self->family;
	int depth;

	if (!fork()) {
		for (depth = 0; depth < MAX_DEAD + 8; depth++) {
			pid_t pid = fork();

			if (pid < 0)
				family->failed = 1;
			if (pid)
				_exit(0);
		}
		fill(self->addr, family->units, family->unit, ~SEED);
		join(family, getpid(), self->addr);
		if (spawn(family, with_a_line, self->addr) > 0)
			spawn(family, moves_and_splits, self->addr);
		for (;;)
			pause();
	}
	while (__atomic_load_n(&family->nr, __ATOMIC_ACQUIRE) < 5 &&
	       !__atomic_load_n(&family->failed, __ATOMIC_ACQUIRE))
		usleep(1000);
	ASSERT_EQ(family->failed, 0);
	expect_all_found(_metadata, family, ~SEED);
	bury(family, family->mappers[0].pid);
	expect_all_found(_metadata, family, ~SEED);
	EXPECT_TRUE(filled(self->addr, family->units, family->unit, SEED));
}

/* Parts moved one by one, the last first, so that the order of addresses is another */
TEST_F_TIMEOUT(mapped, where_moved_in_parts, 300)
{
	struct family *family = self->family;
	size_t half = self->size / 2;
	struct family part = *family;
	char *to = reserve(self->size);
	pid_t pid;

	ASSERT_NE(to, NULL);
	ASSERT_EQ(mremap(self->addr + half, half, half, MREMAP_MAYMOVE | MREMAP_FIXED, to),
		  to);
	ASSERT_EQ(mremap(self->addr, half, half, MREMAP_MAYMOVE | MREMAP_FIXED, to + half),
		  to + half);
	pid = fork();
	ASSERT_GE(pid, 0);
	while (!pid)
		pause();

	part.units = family->units / 2;
	join(&part, getpid(), to);
	join(&part, pid, to);
	expect_all_found(_metadata, &part, SEED + part.units);

	part.nr = 0;
	join(&part, getpid(), to + half);
	join(&part, pid, to + half);
	expect_all_found(_metadata, &part, SEED);

	kill(pid, SIGKILL);
	munmap(to, self->size);
}

/* What was unmapped around them does not hide the pages that are left */
TEST_F_TIMEOUT(mapped, beside_holes, 300)
{
	struct family *family = self->family;
	struct family part = *family;
	size_t unit = family->unit;
	pid_t pid;

	ASSERT_NE(splits(family, self->addr), NULL);
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		munmap(self->addr, unit);
		munmap(self->addr + 3 * unit, self->size - 3 * unit);
		for (;;)
			pause();
	}
	part.units = 2;
	join(&part, pid, self->addr + unit);
	join(&part, getpid(), self->addr + unit);
	while (pagemap_of(pid, self->addr + 3 * unit) & PM_PRESENT)
		usleep(1000);
	expect_all_found(_metadata, &part, SEED + 1);
	kill(pid, SIGKILL);
}

/* A family for pages that are mapped here, at *@addr. */
static struct family *family_of_pages(char **addr)
{
	struct family *family = new_family();

	if (!family)
		return NULL;
	family->unit = psize();
	family->units = MAX_UNITS;
	*addr = map_at(reserve(MAX_UNITS * psize()), ANON, MAX_UNITS * psize());
	if (!*addr) {
		end_family(family);
		return NULL;
	}
	fill(*addr, MAX_UNITS, psize(), SEED);
	return family;
}

FIXTURE(page)
{
	struct family *family;
	size_t size;
	char *addr;
	int pagemap;
};

FIXTURE_SETUP(page)
{
	const char *why = not_moved();

	if (why)
		SKIP(return, "%s", why);

	self->family = family_of_pages(&self->addr);
	ASSERT_NE(self->family, NULL);
	self->size = psize() * MAX_UNITS;
	self->pagemap = open("/proc/self/pagemap", O_RDONLY);
	ASSERT_GE(self->pagemap, 0);
}

FIXTURE_TEARDOWN(page)
{
	end_family(self->family);
	close(self->pagemap);
	munmap(self->addr, self->size);
	put_back();
}

/* What MREMAP_DONTUNMAP leaves has no memory, and gets some of its own */
TEST_F_TIMEOUT(page, dontunmap, 300)
{
	struct family *family = self->family;
	struct family left = *family;
	char *to = move_mapping(family, self->addr, MREMAP_DONTUNMAP);
	pid_t pid;

	ASSERT_NE(to, NULL);
	EXPECT_FALSE(pagemap_is_populated(self->pagemap, self->addr));
	fill(self->addr, MAX_UNITS, psize(), SEED + 0x100);

	join(family, getpid(), to);
	pid = spawn(family, NULL, to);
	ASSERT_GT(pid, 0);
	expect_all_found(_metadata, family, SEED);

	join(&left, getpid(), self->addr);
	join(&left, pid, self->addr);
	expect_all_found(_metadata, &left, SEED + 0x100);

	/* And once more, from a place that is not its own */
	self->addr = move_mapping(family, to, MREMAP_DONTUNMAP);
	ASSERT_NE(self->addr, NULL);
	fill(to, MAX_UNITS, psize(), SEED + 0x200);
	ASSERT_GT(spawn(family, NULL, self->addr), 0);
	left.nr = 0;
	join(&left, getpid(), to);
	join(&left, family->mappers[2].pid, to);
	expect_all_found(_metadata, &left, SEED + 0x200);
}

static char *writes_and_has_a_child(struct family *family, char *addr)
{
	int i;

	for (i = 0; i < MAX_UNITS; i++)
		if (addr[i * psize()])
			return NULL;
	fill(addr, MAX_UNITS, psize(), SEED + 0x100);
	/* A mapping that the child inherits, as it is */
	if (madvise(addr, MAX_UNITS * psize(), MADV_KEEPONFORK))
		return NULL;
	return with_a_child(family, addr);
}

/* A moved mapping that a fork wipes begins anew in the child */
TEST_F_TIMEOUT(page, wiped_on_fork, 300)
{
	struct family *family = self->family;

	ASSERT_EQ(madvise(self->addr, self->size, MADV_WIPEONFORK), 0);
	self->addr = moves(family, self->addr);
	ASSERT_NE(self->addr, NULL);
	ASSERT_GT(spawn(family, writes_and_has_a_child, self->addr), 0);
	EXPECT_EQ(family->nr, 2);
	expect_all_found(_metadata, family, SEED + 0x100);
	EXPECT_TRUE(filled(self->addr, MAX_UNITS, psize(), SEED));
}

/* A mapping that a fork leaves out does not keep the one behind it from being found */
TEST_F_TIMEOUT(page, left_out_of_fork, 300)
{
	struct family *family = self->family;
	struct family part = *family;
	pid_t pid;

	ASSERT_EQ(madvise(self->addr, psize(), MADV_DONTFORK), 0);
	part.units--;
	join(&part, getpid(), self->addr + psize());
	pid = fork();
	ASSERT_GE(pid, 0);
	while (!pid)
		pause();
	join(&part, pid, self->addr + psize());
	expect_all_found(_metadata, &part, SEED + 1);
	kill(pid, SIGKILL);
}

static bool page_out(int pagemap, char *addr, int nr)
{
	int i, tries, swapped = 0;

	for (tries = 0; tries < 50 && swapped < nr; tries++) {
		if (madvise(addr, nr * psize(), MADV_PAGEOUT))
			return false;
		for (i = swapped = 0; i < nr; i++)
			swapped += pagemap_is_swapped(pagemap, addr + i * psize());
		if (swapped < nr)
			usleep(10000);
	}
	return swapped == nr;
}

static char *reads(struct family *family, char *addr)
{
	force_read_pages(addr, MAX_UNITS, psize());
	return addr;
}

static char *has_a_child_that_reads(struct family *family, char *addr)
{
	return spawn(family, reads, addr) < 0 ? NULL : addr;
}

/*
 * Where a page was, its memory is mapped by its number, in a VMA that has anonymous
 * memory, too.  That is no mapping of the page.
 */
TEST_F_TIMEOUT(page, mapped_by_its_number, 300)
{
	struct family *family = self->family;
	unsigned long pfn = pagemap_get_pfn(self->pagemap, self->addr);
	const int mem = open("/dev/mem", O_RDWR);
	char *raw;

	ASSERT_GT(spawn(family, reads, self->addr), 0);
	ASSERT_EQ(munmap(self->addr, self->size), 0);
	raw = mem < 0 ? MAP_FAILED :
	      mmap(self->addr, 2 * psize(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, mem,
		   (off_t)pfn * psize());
	if (raw == MAP_FAILED)
		SKIP(return, "needs /dev/mem, without STRICT_DEVMEM");
	FORCE_READ(*first_word(raw));
	*first_word(raw + psize()) = 1;

	expect_all_found(_metadata, family, SEED);
	munmap(raw, 2 * psize());
	close(mem);
}

/*
 * A page that comes from swap where several may have it belongs to none of them:
 * the first to read it is not who all others were forked from.
 */
TEST_F_TIMEOUT(page, swapped_in_by_a_child, 300)
{
	struct family *family = self->family;
	char *addr = self->addr;

	if (!page_out(self->pagemap, addr, MAX_UNITS))
		SKIP(return, "needs swap");
	ASSERT_GT(spawn(family, reads, addr), 0);
	ASSERT_GT(spawn(family, has_a_child_that_reads, addr), 0);
	reads(family, addr);
	join(family, getpid(), addr);
	expect_all_found(_metadata, family, SEED);
}

/* The same with swapoff, which has all of them read it, in no order */
TEST_F_TIMEOUT(page, swapped_in_by_swapoff, 300)
{
	struct family *family = self->family;
	char *addr = self->addr;

	if (!may_change())
		SKIP(return, "switches swap off, which " NEEDS_DESTRUCTIVE);
	if (!page_out(self->pagemap, addr, MAX_UNITS))
		SKIP(return, "needs swap");
	ASSERT_GT(spawn(family, NULL, addr), 0);
	ASSERT_GT(spawn(family, with_a_child, addr), 0);
	ASSERT_GT(spawn(family, moves, addr), 0);
	join(family, getpid(), addr);

	EXPECT_GT(swap_off_and_on(), 0);
	EXPECT_FALSE(pagemap_is_swapped(self->pagemap, addr));
	expect_all_found(_metadata, family, SEED);
}

#define PAGE_IDLE	"/sys/kernel/mm/page_idle/bitmap"

/* A walk to each page of a process that is in memory */
static bool mark_idle(struct mapper *mapper, int units)
{
	int fd = open(PAGE_IDLE, O_RDWR), i;
	bool marked = fd >= 0;

	for (i = 0; i < units && marked; i++) {
		uint64_t pfn = PAGEMAP_PFN(pagemap_of(mapper->pid, mapper->addr + i * psize()));
		uint64_t bit = 1ULL << pfn % 64;

		marked = pwrite(fd, &bit, 8, pfn / 64 * 8) == 8;
	}
	if (fd >= 0)
		close(fd);
	return marked;
}

/*
 * A walk gives a page to the process that has it alone.  Those forked from that one
 * are found all the same; and of two, neither gets it.
 */
static void left_to(struct __test_metadata *_metadata, struct family *family, char *addr,
		    int processes)
{
	struct mapper other = {
		.pid = getpid(),
		.addr = map_at(reserve(psize()), ANON, psize()),
	};
	int i;

	if (access(PAGE_IDLE, F_OK))
		SKIP(return, "needs idle page tracking");
	for (i = 0; i < processes; i++)
		ASSERT_GT(spawn(family, NULL, addr), 0);
	ASSERT_EQ(munmap(addr, family->units * psize()), 0);
	/* What is in a batch for the LRU is not looked at: moving any page drains them. */
	ASSERT_NE(other.addr, NULL);
	fill(other.addr, 1, psize(), SEED);
	ASSERT_EQ(move_to(&other, 1, psize(), 1), 1);
	ASSERT_TRUE(mark_idle(&family->mappers[0], family->units));
	expect_all_found(_metadata, family, SEED);
	munmap(other.addr, psize());
}

TEST_F_TIMEOUT(page, left_to_one_process, 300)
{
	left_to(_metadata, self->family, self->addr, 1);
}

TEST_F_TIMEOUT(page, left_to_two_processes, 300)
{
	left_to(_metadata, self->family, self->addr, 2);
}

/* A page of two, one of which was forked from the other, and of nobody else any more */
TEST_F_TIMEOUT(page, left_to_a_process_and_its_child, 300)
{
	struct family *family = self->family;

	ASSERT_GT(spawn(family, with_a_child, self->addr), 0);
	left_to(_metadata, family, self->addr, 0);
}

static void forget_a_child(void)
{
	pid_t pid = fork();

	if (!pid)
		_exit(0);
	waitpid(pid, NULL, 0);
}

/* What fork has shared, and only one has kept, is that one's alone when it has moved. */
TEST_F_TIMEOUT(page, migrated_when_shared_no_more, 300)
{
	struct family *family = self->family;
	struct mapper mapper = { .pid = getpid(), .addr = self->addr };
	int node;

	for (node = 0; node < 2; node++) {
		forget_a_child();
		EXPECT_EQ(move_to(&mapper, MAX_UNITS, psize(), node), MAX_UNITS);
	}
	join(family, getpid(), self->addr);
	ASSERT_GT(spawn(family, with_a_child, self->addr), 0);
	expect_all_found(_metadata, family, SEED);
}

/* But not if it could not be moved, as others have it who do not map it. */
TEST_F_TIMEOUT(page, in_a_pipe_when_it_cannot_migrate, 300)
{
	struct mapper mapper = { .pid = getpid(), .addr = self->addr };
	struct iovec iov = { .iov_base = self->addr, .iov_len = psize() };
	unsigned long was = *first_word(self->addr), got = 0;
	int ends[2], node;

	forget_a_child();
	ASSERT_EQ(pipe(ends), 0);
	ASSERT_EQ(vmsplice(ends[1], &iov, 1, 0), (ssize_t)psize());
	for (node = 0; node < 2; node++)
		move_to(&mapper, 1, psize(), node);
	*first_word(self->addr) = was + 1;
	ASSERT_EQ(read(ends[0], &got, sizeof(got)), (ssize_t)sizeof(got));
	EXPECT_EQ(got, was);
	close(ends[0]);
	close(ends[1]);
}

/* A page that came back to the one who has it is that one's, wherever it was moved since */
TEST_F_TIMEOUT(page, swapped_in_by_its_owner, 300)
{
	struct family *family = self->family;

	self->addr = moves(family, self->addr);
	ASSERT_NE(self->addr, NULL);
	if (!page_out(self->pagemap, self->addr, MAX_UNITS))
		SKIP(return, "needs swap");
	reads(family, self->addr);
	join(family, getpid(), self->addr);
	ASSERT_GT(spawn(family, splits, self->addr), 0);
	expect_all_found(_metadata, family, SEED);
}

/* exec moves the stack, in every process: its pages are never where their offsets say */
TEST_F_TIMEOUT(page, of_the_stack, 300)
{
	char *room = alloca(2 * psize()), *stack = (char *)(((unsigned long)room + psize() - 1) &
							    ~(psize() - 1UL));
	struct family *family = self->family;
	struct family part = *family;
	pid_t pid;

	part.units = 1;
	fill(stack, 1, psize(), SEED);
	pid = fork();
	ASSERT_GE(pid, 0);
	while (!pid)
		pause();
	join(&part, pid, stack);
	join(&part, getpid(), stack);
	expect_all_found(_metadata, &part, SEED);
	kill(pid, SIGKILL);
}

/* Pages that userfaultfd moves have another offset from then on */
TEST_F_TIMEOUT(page, moved_by_userfaultfd, 300)
{
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_MOVE };
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	struct family *family = self->family;
	struct uffdio_move move = {};
	char *to = moves(family, map_at(reserve(self->size), ANON, self->size));
	int uffd = syscall(SYS_userfaultfd, O_CLOEXEC);

	ASSERT_NE(to, NULL);
	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api))
		SKIP(return, "needs UFFDIO_MOVE");
	reg.range.start = (unsigned long)to;
	reg.range.len = self->size;
	ASSERT_EQ(ioctl(uffd, UFFDIO_REGISTER, &reg), 0);

	move.dst = (unsigned long)to;
	move.src = (unsigned long)self->addr;
	move.len = self->size;
	ASSERT_EQ(ioctl(uffd, UFFDIO_MOVE, &move), 0);
	EXPECT_EQ(move.move, (long long)self->size);
	ASSERT_EQ(ioctl(uffd, UFFDIO_UNREGISTER, &reg.range), 0);
	close(uffd);

	join(family, getpid(), to);
	ASSERT_GT(spawn(family, with_a_child, to), 0);
	ASSERT_GT(spawn(family, moves, to), 0);
	expect_all_found(_metadata, family, SEED);
	munmap(to, self->size);
}

/* Memory that KSM merges with other memory of the same contents */
static char *map_mergeable(char *addr)
{
	addr = map_at(addr, ANON, MAX_UNITS * psize());
	if (!addr || madvise(addr, MAX_UNITS * psize(), MADV_MERGEABLE))
		return NULL;
	fill(addr, MAX_UNITS, psize(), SEED);
	return addr;
}

/* Why KSM is not told to merge anything, or NULL */
static const char *need_ksm(void)
{
	if (!may_change())
		return "has KSM run, which " NEEDS_DESTRUCTIVE;
	return remember_setting("/sys/kernel/mm/ksm/run") ? NULL : "needs KSM";
}

/* Has KSM merge what the processes of a family have */
static bool merge(struct family *family)
{
	bool merged = false;
	int tries;

	change_number("/sys/kernel/mm/ksm/pages_to_scan", 1000);
	/* It could look at each of two pages in scans of its own, for ever. */
	change_number("/sys/kernel/mm/ksm/smart_scan", 0);
	for (tries = 0; tries < 20 && !merged; tries++) {
		if (ksm_start())
			return false;
		merged = same_pages(family);
	}
	write_setting("/sys/kernel/mm/ksm/run", "0");
	return merged;
}

/* A page of KSM is found in who offered it, and in who was forked from there */
TEST_F_TIMEOUT(page, merged_by_ksm, 300)
{
	struct family *family = self->family;
	char *other = map_mergeable(reserve(self->size));
	const char *why = need_ksm();

	if (why)
		SKIP(return, "%s", why);
	ASSERT_NE(other, NULL);
	ASSERT_EQ(madvise(self->addr, self->size, MADV_MERGEABLE), 0);
	self->addr = moves(family, self->addr);
	ASSERT_NE(self->addr, NULL);
	join(family, getpid(), self->addr);
	join(family, getpid(), other);
	ASSERT_TRUE(merge(family));

	ASSERT_GT(spawn(family, with_a_child, self->addr), 0);
	ASSERT_GT(spawn(family, splits, other), 0);
	expect_all_found(_metadata, family, SEED);
	EXPECT_NE(checked("ksm"), 0);
	EXPECT_LE(checked("ksm_missed"), 0);
	EXPECT_EQ(ksm_stop(), 0);
	munmap(other, self->size);
}

/* If a child has moved a page before KSM merges it, KSM knows the parent's address. */
TEST_F_TIMEOUT(page, merged_by_ksm_after_a_move, 300)
{
	struct family *family = self->family;
	const char *why = need_ksm();
	char *other, *addr;

	if (why)
		SKIP(return, "%s", why);
	/* KSM goes upwards, and of two pages it keeps the one that it finds last. */
	other = reserve(2 * self->size);
	ASSERT_NE(other, NULL);
	addr = map_at(other + self->size, ANON, self->size);
	ASSERT_NE(addr, NULL);
	fill(addr, family->units, family->unit, SEED);
	ASSERT_GT(spawn(family, moves, addr), 0);
	ASSERT_NE(map_mergeable(other), NULL);
	ASSERT_EQ(madvise(addr, self->size, MADV_MERGEABLE), 0);
	join(family, getpid(), addr);
	join(family, getpid(), other);
	ASSERT_TRUE(merge(family));
	expect_all_found(_metadata, family, SEED);
	EXPECT_NE(checked("ksm"), 0);
	EXPECT_LE(checked("ksm_missed"), 0);
	EXPECT_EQ(ksm_stop(), 0);
	munmap(other, 2 * self->size);
}

static char *merges(struct family *family, char *addr)
{
	char *other = map_mergeable(reserve(MAX_UNITS * psize()));
	struct family both = *family;

	if (!other || madvise(addr, MAX_UNITS * psize(), MADV_MERGEABLE))
		return NULL;
	both.nr = 0;
	join(&both, getpid(), addr);
	join(&both, getpid(), other);
	return merge(&both) ? addr : NULL;
}

/*
 * What a process has from the one that it was forked from can be merged, too.  KSM does
 * not know who else has it then: it can be moved when these are gone.
 */
TEST_F_TIMEOUT(page, merged_by_ksm_in_a_child, 300)
{
	struct family *family = self->family;
	const char *why = need_ksm();

	if (why)
		SKIP(return, "%s", why);
	ASSERT_GT(spawn(family, merges, self->addr), 0);
	EXPECT_TRUE(filled(self->addr, MAX_UNITS, psize(), SEED));
	EXPECT_EQ(munmap(self->addr, self->size), 0);
	expect_all_found(_metadata, family, SEED);
	EXPECT_EQ(ksm_stop(), 0);
}

/* The same place in processes that are no relatives, which nothing else has */
#define STRANGE_PLACE	((char *)(1UL << (sizeof(long) == 8 ? 36 : 30)))

/* What a process does that a test has made by exec: its contexts begin with itself. */
static void __attribute__((constructor)) be_a_stranger(void)
{
	if (!getenv("COW_CONTEXT_STRANGER"))
		return;
	if (!map_mergeable(STRANGE_PLACE))
		_exit(1);
	for (;;)
		pause();
}

static bool is_swapped(struct family *family)
{
	int i, m;

	for (m = 0; m < family->nr; m++)
		for (i = 0; i < family->units; i++)
			if (!(pagemap_of(family->mappers[m].pid, family->mappers[m].addr +
					 i * family->unit) & PM_SWAP))
				return false;
	return true;
}

/*
 * A page of KSM that comes from swap is one like others, and belongs to who read it
 * first.  A stranger who finds it in the swap cache, for the same offset, copies it.
 */
TEST_F_TIMEOUT(page, merged_by_ksm_and_swapped, 300)
{
	char *addr = map_mergeable(STRANGE_PLACE);
	struct family *family = self->family;
	struct family stranger = *family;
	const char *why = need_ksm();
	int tries;
	pid_t pid;

	if (why)
		SKIP(return, "%s", why);
	ASSERT_NE(addr, NULL);
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		setenv("COW_CONTEXT_STRANGER", "1", 1);
		execl("/proc/self/exe", "stranger", NULL);
		_exit(1);
	}
	join(&stranger, pid, addr);
	join(family, getpid(), addr);
	join(family, pid, addr);
	for (tries = 0; tries < 100 && !same_contents(&stranger, SEED); tries++)
		usleep(100 * 1000);
	ASSERT_TRUE(merge(family));

	for (tries = 0; tries < 200 && !is_swapped(family); tries++)
		if (!write_setting("/sys/fs/cgroup/memory.reclaim", "8M"))
			usleep(1000);
	if (!is_swapped(family))
		SKIP(return, "needs swap, and memory.reclaim");

	reads(family, addr);
	EXPECT_TRUE(same_contents(&stranger, SEED));
	EXPECT_FALSE(same_pages(family));
	expect_all_found(_metadata, &stranger, SEED);
	family->nr = 1;
	expect_all_found(_metadata, family, SEED);
	EXPECT_EQ(ksm_stop(), 0);
	kill(pid, SIGKILL);
	munmap(addr, self->size);
}

/* The number of signals that the processes of a test got, in memory that they share */
static int *told;

static void on_sigbus(int signal, siginfo_t *info, void *context)
{
	__atomic_add_fetch(told, 1, __ATOMIC_RELAXED);
}

FIXTURE(broken_page)
{
	struct family *family;
	size_t size;
	char *addr;
	int pagemap;
};

/* The test and what it forks are told at once, and survive. */
FIXTURE_SETUP(broken_page)
{
	struct sigaction action = { .sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO };
	const char *why = not_moved();

	if (why)
		SKIP(return, "%s", why);
	if (!may_change())
		SKIP(return, "poisons a page, which " NEEDS_DESTRUCTIVE);
	if (!may_poison())
		SKIP(return, "needs memory failure, and hwpoison_inject to undo it");
	told = mmap(NULL, psize(), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(told, MAP_FAILED);
	ASSERT_EQ(sigaction(SIGBUS, &action, NULL), 0);
	ASSERT_EQ(prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_EARLY, 0, 0), 0);

	self->family = family_of_pages(&self->addr);
	ASSERT_NE(self->family, NULL);
	self->size = psize() * MAX_UNITS;
	self->pagemap = open("/proc/self/pagemap", O_RDONLY);
	ASSERT_GE(self->pagemap, 0);
}

FIXTURE_TEARDOWN(broken_page)
{
	end_family(self->family);
	close(self->pagemap);
	munmap(self->addr, self->size);
	put_back();
}

/* All who have a page that is broken lose it, and are told */
TEST_F_TIMEOUT(broken_page, of_a_family, 300)
{
	struct family *family = self->family;
	unsigned long pfn;
	int m, tries;
	char byte;

	self->addr = moves(family, self->addr);
	ASSERT_NE(self->addr, NULL);
	ASSERT_GT(spawn(family, with_a_line, self->addr), 0);
	ASSERT_GT(spawn(family, moves, self->addr), 0);
	join(family, getpid(), self->addr);
	EXPECT_TRUE(same_pages(family));

	pfn = pagemap_get_pfn(self->pagemap, self->addr);
	ASSERT_EQ(madvise(self->addr, psize(), MADV_HWPOISON), 0);
	for (m = 0; m < family->nr; m++) {
		EXPECT_FALSE(pagemap_of(family->mappers[m].pid, family->mappers[m].addr) &
			     PM_PRESENT);
		EXPECT_EQ(read_of(family->mappers[m].pid, family->mappers[m].addr, &byte, 1),
			  -1);
	}
	for (tries = 0; tries < 100 && *told < family->nr; tries++)
		usleep(10000);
	EXPECT_EQ(*told, family->nr);
	for (m = 0; m < family->nr; m++)
		EXPECT_EQ(kill(family->mappers[m].pid, 0), 0);
	EXPECT_EQ(unpoison_memory(pfn), 0);
}

/* So many that what is kept of where they have it has to grow */
#define NR_TOLD		20

static char *copies(struct family *family, char *addr)
{
	fill(addr, MAX_UNITS, psize(), SEED + 0x100);
	return addr;
}

/* Who has a copy has lost nothing, and is not told */
TEST_F_TIMEOUT(broken_page, of_many, 300)
{
	struct family *family = self->family;
	struct family copy = *family;
	unsigned long pfn;
	int i, tries;

	for (i = 0; i < NR_TOLD; i++)
		ASSERT_GT(spawn(family, NULL, self->addr), 0);
	join(&copy, spawn(family, copies, self->addr), self->addr);
	ASSERT_GT(copy.mappers[0].pid, 0);

	pfn = pagemap_get_pfn(self->pagemap, self->addr);
	ASSERT_EQ(madvise(self->addr, psize(), MADV_HWPOISON), 0);
	for (tries = 0; tries < 100 && *told <= NR_TOLD; tries++)
		usleep(10000);
	usleep(100 * 1000);
	EXPECT_EQ(*told, NR_TOLD + 1);
	EXPECT_TRUE(same_contents(&copy, SEED + 0x100));
	EXPECT_EQ(unpoison_memory(pfn), 0);
}

/* Who has a broken page of KSM at two places is told once */
TEST_F_TIMEOUT(broken_page, of_ksm, 300)
{
	char *other = map_mergeable(reserve(self->size));
	struct family *family = self->family;
	const char *why = need_ksm();
	unsigned long pfn;
	int tries;

	if (why)
		SKIP(return, "%s", why);
	ASSERT_NE(other, NULL);
	ASSERT_EQ(madvise(self->addr, self->size, MADV_MERGEABLE), 0);
	join(family, getpid(), self->addr);
	join(family, getpid(), other);
	ASSERT_TRUE(merge(family));
	ASSERT_GT(spawn(family, NULL, self->addr), 0);

	pfn = pagemap_get_pfn(self->pagemap, self->addr);
	ASSERT_EQ(madvise(self->addr, psize(), MADV_HWPOISON), 0);
	EXPECT_FALSE(pagemap_of(getpid(), self->addr) & PM_PRESENT);
	EXPECT_FALSE(pagemap_of(getpid(), other) & PM_PRESENT);
	for (tries = 0; tries < 100 && *told < 2; tries++)
		usleep(10000);
	usleep(100 * 1000);
	EXPECT_EQ(*told, 2);
	munmap(other, self->size);
	munmap(self->addr, self->size);
	end_family(family);
	self->family = new_family();
	EXPECT_EQ(unpoison_memory(pfn), 0);
	EXPECT_EQ(ksm_stop(), 0);
}

/* The pages of a core dump that are as fill() has left them; -1 without a dump */
static int dumped(const char *core, unsigned long seed)
{
	char *page = malloc(psize());
	FILE *file = fopen(core, "r");
	int nr = 0;

	if (!file || !page)
		return -1;
	while (fread(page, psize(), 1, file) == 1) {
		const unsigned long word = *first_word(page);

		nr += word >= seed && word < seed + MAX_UNITS &&
		      filled(page, 1, psize(), word);
	}
	fclose(file);
	free(page);
	return nr;
}

static void dump_core(const char *directory)
{
	struct rlimit all = { .rlim_cur = RLIM_INFINITY, .rlim_max = RLIM_INFINITY };
	size_t size = MAX_UNITS * psize();
	char *addr;
	int fd;

	addr = map_at(reserve(size), PRIVATE_FILE, size);
	if (!addr || chdir(directory) || setrlimit(RLIMIT_CORE, &all))
		_exit(1);
	fill(addr, MAX_UNITS, psize(), SEED + 0x200);

	/* A file that has something and is only read, and is no program */
	fd = memfd_create("cow_context", 0);
	if (fd < 0 || fchmod(fd, 0600) || ftruncate(fd, size))
		_exit(1);
	addr = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (addr == MAP_FAILED)
		_exit(1);
	fill(addr, MAX_UNITS, psize(), SEED + 0x300);
	munmap(addr, size);
	addr = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	if (addr == MAP_FAILED)
		_exit(1);
	force_read_pages(addr, MAX_UNITS, psize());
	abort();
}

/* Of private mappings of files, a core dump has those that were written to */
TEST_F_TIMEOUT(page, in_a_core_dump, 60)
{
	char directory[] = "/tmp/cow_context.XXXXXX", core[64], pattern[8] = "";
	FILE *file = fopen("/proc/sys/kernel/core_pattern", "r");
	int status;
	pid_t pid;

	if (file) {
		if (fscanf(file, "%7s", pattern) != 1)
			*pattern = 0;
		fclose(file);
	}
	if (strcmp(pattern, "core") || read_num("/proc/sys/kernel/core_uses_pid"))
		SKIP(return, "needs core_pattern to be \"core\"");

	ASSERT_NE(mkdtemp(directory), NULL);
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid)
		dump_core(directory);
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	EXPECT_TRUE(WIFSIGNALED(status) && WCOREDUMP(status));
	snprintf(core, sizeof(core), "%s/core", directory);
	EXPECT_EQ(dumped(core, SEED), MAX_UNITS);
	EXPECT_EQ(dumped(core, SEED + 0x200), MAX_UNITS);
	EXPECT_EQ(dumped(core, SEED + 0x300), 0);
	unlink(core);
	rmdir(directory);
}

/* Soft offlining takes a good page away from all who have it, and nothing else */
TEST_F_TIMEOUT(page, taken_offline, 300)
{
	struct family *family = self->family;
	unsigned long before, after;
	int ret;

	if (!may_change())
		SKIP(return, "takes a page offline, which " NEEDS_DESTRUCTIVE);
	if (!may_poison())
		SKIP(return, "needs memory failure, and hwpoison_inject to undo it");
	ASSERT_GT(spawn(family, with_a_line, self->addr), 0);
	ASSERT_GT(spawn(family, moves, self->addr), 0);
	join(family, getpid(), self->addr);
	before = pagemap_get_pfn(self->pagemap, self->addr);
	ret = madvise(self->addr, psize(), MADV_SOFT_OFFLINE);
	if (ret && errno == EOPNOTSUPP)
		SKIP(return, "needs vm.enable_soft_offline");
	ASSERT_EQ(ret, 0);
	after = pagemap_get_pfn(self->pagemap, self->addr);
	EXPECT_NE(after, before);
	expect_all_found(_metadata, family, SEED);
	EXPECT_EQ(unpoison_memory(before), 0);
}

/* Compaction of all memory leaves each page where it is for all, or for none */
TEST_F_TIMEOUT(page, while_compacting, 300)
{
	struct family *family = self->family;
	int round;

	if (!may_change())
		SKIP(return, "compacts all memory, which " NEEDS_DESTRUCTIVE);
	self->addr = moves(family, self->addr);
	ASSERT_NE(self->addr, NULL);
	ASSERT_GT(spawn(family, with_a_line, self->addr), 0);
	ASSERT_GT(spawn(family, moves_away_and_back, self->addr), 0);
	join(family, getpid(), self->addr);
	for (round = 0; round < 3; round++) {
		write_setting("/proc/sys/vm/compact_memory", "1");
		EXPECT_TRUE(same_pages(family));
		EXPECT_TRUE(same_contents(family, SEED));
	}
	expect_all_found(_metadata, family, SEED);
}

/* When three VMAs become one, any of them may be the one that has memory */
TEST_F_TIMEOUT(page, in_a_merge_of_three, 300)
{
	struct family *family = self->family;
	char *addr = reserve(3 * self->size);
	int which;

	ASSERT_NE(addr, NULL);
	for (which = 0; which <= 2; which += 2) {
		char *memory = addr + which * self->size;
		pid_t pid;

		ASSERT_NE(map_at(addr, ANON, 3 * self->size), NULL);
		ASSERT_EQ(mprotect(addr + self->size, self->size, PROT_READ), 0);
		fill(memory, MAX_UNITS, psize(), SEED);
		family->nr = 0;
		join(family, getpid(), memory);
		pid = spawn(family, NULL, memory);
		ASSERT_GT(pid, 0);
		ASSERT_EQ(mprotect(addr + self->size, self->size, PROT_READ | PROT_WRITE), 0);
		expect_all_found(_metadata, family, SEED);
		bury(family, pid);
	}
	munmap(addr, 3 * self->size);
}

/* A file that is collapsed leaves private mappings what was written to them */
TEST_F_TIMEOUT(page, beside_a_collapsed_file, 300)
{
	/* Nothing else is collapsed to, however large it is. */
	size_t huge = read_pmd_pagesize();
	int fd = memfd_create("cow_context", 0), nr = huge / psize();
	struct family *family = self->family;
	char *shared, *private;

	if (!huge)
		SKIP(return, "needs THP");
	ASSERT_GE(fd, 0);
	ASSERT_EQ(ftruncate(fd, huge), 0);
	shared = mmap(reserve_for(huge, huge), huge, PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_FIXED, fd, 0);
	ASSERT_NE(shared, MAP_FAILED);
	private = mmap(reserve_for(huge, huge), huge, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_FIXED, fd, 0);
	ASSERT_NE(private, MAP_FAILED);
	close(fd);
	fill(shared, nr, psize(), SEED + 0x1000);
	fill(private, MAX_UNITS, psize(), SEED);
	join(family, getpid(), private);
	ASSERT_GT(spawn(family, NULL, private), 0);

	if (madvise(shared, huge, MADV_COLLAPSE))
		SKIP(return, "needs huge pages of shmem");
	EXPECT_TRUE(check_huge_shmem(shared, huge, 1, huge));
	EXPECT_TRUE(filled(shared, nr, psize(), SEED + 0x1000));
	EXPECT_TRUE(filled(private + self->size, nr - MAX_UNITS, psize(),
			   SEED + 0x1000 + MAX_UNITS));
	expect_all_found(_metadata, family, SEED);
	munmap(shared, huge);
	munmap(private, huge);
}

FIXTURE(huge_page)
{
	struct family *family;
	char *addr;
	int nr;
};

/* There is room for another one behind it. */
FIXTURE_SETUP(huge_page)
{
	const char *why = not_moved();

	if (!why)
		why = need_thp();
	if (why)
		SKIP(return, "%s", why);
	self->family = new_family();
	ASSERT_NE(self->family, NULL);
	self->family->unit = psize();
	self->family->units = MAX_UNITS;
	self->nr = thp_size / psize();
	self->addr = map_at(reserve(2 * thp_size), THP, thp_size);
	ASSERT_NE(self->addr, NULL);
	fill(self->addr, self->nr, psize(), SEED);
	ASSERT_TRUE(is_huge(self->addr, thp_size, 1));
}

FIXTURE_TEARDOWN(huge_page)
{
	end_family(self->family);
	munmap(self->addr, thp_size);
	put_back();
}

/* A huge page that is split is mapped where it was, by all */
TEST_F_TIMEOUT(huge_page, split, 300)
{
	struct family *family = self->family;
	char *addr = self->addr, command[128];
	pid_t pid;

	pid = spawn(family, with_a_line, addr);
	ASSERT_GT(pid, 0);
	self->addr += thp_size;
	ASSERT_EQ(mremap(addr, thp_size, thp_size, MREMAP_MAYMOVE | MREMAP_FIXED,
			 self->addr), self->addr);
	join(family, getpid(), self->addr);
	EXPECT_TRUE(same_pages(family));
	EXPECT_TRUE(is_huge(self->addr, thp_size, 1));

	snprintf(command, sizeof(command), "%d,0x%lx,0x%lx", pid, (unsigned long)addr,
		 (unsigned long)addr + thp_size);
	if (!write_setting("/sys/kernel/debug/split_huge_pages", command))
		SKIP(return, "needs split_huge_pages of debugfs");
	EXPECT_TRUE(is_huge(self->addr, thp_size, 0));
	expect_all_found(_metadata, family, SEED);
	EXPECT_TRUE(filled(self->addr, self->nr, psize(), SEED));
}

/*
 * A fork gets half of it.  What is mapped by nobody else, and is found first, does not
 * stand for what is.
 */
TEST_F_TIMEOUT(huge_page, half_left_out_of_fork, 300)
{
	struct family *family = self->family;

	ASSERT_EQ(madvise(self->addr + thp_size / 2, thp_size / 2, MADV_DONTFORK), 0);
	join(family, getpid(), self->addr);
	ASSERT_GT(spawn(family, with_a_child, self->addr), 0);
	expect_all_found(_metadata, family, SEED);
	EXPECT_TRUE(filled(self->addr, self->nr, psize(), SEED));
}

/* So long each race runs, or as the environment says */
#define RACE_SECONDS	5

/* Pages of a race, and the VMAs that they are split into */
#define RACE_UNITS	256

/* More than there may be committed once more, where a fork is to fail */
#define ROOM_SIZE	(512UL * HPAGE_SIZE)
#define MAX_CHILDREN	4

FIXTURE(race)
{
	struct shared *shared;
	char *addr, *other, *room;
	size_t unit, size;
	unsigned long moved;
	time_t end;
	pid_t mover;
	int units;
};

FIXTURE_VARIANT(race)
{
	enum kind kind;
};

FIXTURE_VARIANT_ADD(race, anon)
{
	.kind = ANON,
};

FIXTURE_VARIANT_ADD(race, thp)
{
	.kind = THP,
};

FIXTURE_VARIANT_ADD(race, hugetlb)
{
	.kind = HUGETLB,
};

/* Counts its time from when it is asked for the first time */
static bool goes_on(time_t *end)
{
	const char *seconds = getenv("RACE_SECONDS");

	if (!*end)
		*end = time(NULL) + (seconds ? atoi(seconds) : RACE_SECONDS);
	return time(NULL) < *end;
}

/* Moves what there is of the memory to one node and to the other, for ever */
static void move_for_ever(struct shared *shared, pid_t pid, char **places, int nr_places,
			  int units, size_t unit)
{
	void *pages[2 * RACE_UNITS];
	int nodes[2 * RACE_UNITS], status[2 * RACE_UNITS], node, i, place;
	unsigned long round;

	for (round = 0; ; round++) {
		node = round % 2;
		for (place = 0; place < nr_places; place++) {
			for (i = 0; i < units; i++) {
				pages[place * units + i] = places[place] + i * unit;
				nodes[place * units + i] = node;
			}
		}
		if (syscall(SYS_move_pages, pid, nr_places * units, pages, nodes, status,
			    MPOL_MF_MOVE_ALL) < 0) {
			if (errno == ESRCH)
				_exit(0);
			continue;
		}
		/* They may have been where they were to go first. */
		for (i = 0; round && i < nr_places * units; i++)
			shared->moved += status[i] == node;
	}
}

FIXTURE_SETUP(race)
{
	const char *why = not_moved();
	pid_t pid = getpid();
	int tries;

	if (!why && variant->kind == HUGETLB)
		why = need_hugetlb(24);
	if (!why && variant->kind == THP)
		why = need_thp();
	if (why)
		SKIP(return, "%s", why);
	ASSERT_EQ(prctl(PR_SET_CHILD_SUBREAPER, 1), 0);
	self->unit = unit_size(variant->kind);
	self->units = variant->kind == ANON ? RACE_UNITS : nr_units(variant->kind);
	self->size = self->unit * self->units;
	self->addr = reserve(2 * self->size + ROOM_SIZE);
	ASSERT_NE(self->addr, NULL);
	/* Behind the other two, and accounted for as soon as it may be written */
	self->room = mmap(self->addr + 2 * self->size, ROOM_SIZE, PROT_NONE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	ASSERT_NE(self->room, MAP_FAILED);
	self->other = self->addr + self->size;
	ASSERT_EQ(map_at(self->addr, variant->kind, self->size), self->addr);
	self->shared = mmap(NULL, sizeof(*self->shared), PROT_READ | PROT_WRITE,
			    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(self->shared, MAP_FAILED);

	/* It must not map the memory itself. */
	self->mover = fork();
	ASSERT_GE(self->mover, 0);
	if (!self->mover) {
		char *places[2] = { self->addr, self->other };

		munmap(self->addr, self->size);
		move_for_ever(self->shared, pid, places, 2, self->units, self->unit);
	}
	fill(self->addr, self->units, self->unit, SEED);
	for (tries = 0; tries < 1000 && !self->shared->moved; tries++)
		usleep(10000);
	self->moved = self->shared->moved;
	ASSERT_GT(self->moved, 0);
}

FIXTURE_TEARDOWN(race)
{
	EXPECT_TRUE(check_passes());
	EXPECT_EQ(waitpid(self->mover, NULL, WNOHANG), 0);
	kill(self->mover, SIGKILL);
	self->shared->stop = 1;
	reap_all();
	EXPECT_EQ(self->shared->failed, 0);
	if (_metadata->exit_code != KSFT_SKIP)
		EXPECT_GT(self->shared->moved, self->moved);
	munmap(self->shared, sizeof(*self->shared));
	munmap(self->addr, 2 * self->size);
	munmap(self->room, ROOM_SIZE);
	put_back();
}

/* One VMA for each page or two, so that operations on all of them take their time */
static void split_up(char *addr, int units, size_t unit)
{
	int i;

	for (i = 0; i < units; i += 2)
		mprotect(addr + i * unit, unit, PROT_READ | PROT_WRITE | PROT_EXEC);
}

/* Long enough for the mover to be anywhere, as it waits while VMAs change */
static void let_move(void)
{
	static unsigned int seed = 1;

	usleep(rand_r(&seed) % 20000);
}

/* Pages are moved between being taken out of the tree and out of the page tables */
TEST_F_TIMEOUT(race, with_munmap, 300)
{
	unsigned long seed = SEED;

	while (goes_on(&self->end)) {
		split_up(self->addr, self->units, self->unit);
		ASSERT_TRUE(filled(self->addr, self->units, self->unit, seed));
		let_move();
		ASSERT_EQ(munmap(self->addr, self->size), 0);
		ASSERT_EQ(map_at(self->addr, variant->kind, self->size), self->addr);
		fill(self->addr, self->units, self->unit, ++seed);
	}
}

/* The same with a mapping that takes the place of another */
TEST_F_TIMEOUT(race, with_map_fixed, 300)
{
	unsigned long seed = SEED;

	while (goes_on(&self->end)) {
		split_up(self->addr, self->units, self->unit);
		ASSERT_TRUE(filled(self->addr, self->units, self->unit, seed));
		let_move();
		ASSERT_EQ(map_at(self->addr, variant->kind, self->size), self->addr);
		fill(self->addr, self->units, self->unit, ++seed);
	}
}

/* Children see what was there at the fork, but for a part, and go as they like */
TEST_F_TIMEOUT(race, with_fork_and_exit, 300)
{
	unsigned int seed = 1, children = 0;
	int status;

	split_up(self->addr, self->units, self->unit);
	ASSERT_EQ(map_at(self->other, variant->kind, self->size), self->other);
	fill(self->other, self->units, self->unit, SEED);
	split_up(self->other, self->units, self->unit);
	ASSERT_EQ(madvise(self->other, self->size, MADV_DONTFORK), 0);
	while (goes_on(&self->end)) {
		pid_t pid = fork();

		ASSERT_GE(pid, 0);
		if (!pid) {
			seed += getpid();
			if (rand_r(&seed) % 2)
				fork();
			/* Nobody waits for the second one. */
			if (rand_r(&seed) % 2 &&
			    !filled(self->addr, self->units, self->unit, SEED)) {
				self->shared->failed = 1;
				_exit(1);
			}
			if (rand_r(&seed) % 2 && variant->kind != HUGETLB)
				fill(self->addr + self->unit, 1, self->unit, 0);
			_exit(0);
		}
		rand_r(&seed);
		for (children++; children > MAX_CHILDREN; children--) {
			ASSERT_GT(wait(&status), 0);
			ASSERT_EQ(status, 0);
		}
		ASSERT_TRUE(filled(self->addr, self->units, self->unit, SEED));
	}
	/* The mover stays. */
	while (children--) {
		ASSERT_GT(wait(&status), 0);
		ASSERT_EQ(status, 0);
	}
}

/* Takes all pages of some memory away, by going through the memory and not the mms */
static void __noreturn disturb(struct shared *shared)
{
	int block;

	for (block = 0; !__atomic_load_n(&shared->stop, __ATOMIC_RELAXED);
	     block = (block + 1) % 64) {
		write_setting("/proc/sys/vm/compact_memory", "1");
		if (offline_block(block))
			online_block(block);
		else
			usleep(1000);
	}
	_exit(0);
}

/* Who has a page goes, and all who could have had it, while it has no mapping */
TEST_F_TIMEOUT(race, with_exit, 300)
{
	unsigned int seed = 1, children = 0;
	pid_t disturber;
	int status;

	if (!may_change())
		SKIP(return, "takes memory offline, which " NEEDS_DESTRUCTIVE);
	disturber = fork();
	ASSERT_GE(disturber, 0);
	if (!disturber) {
		munmap(self->addr, self->size);
		disturb(self->shared);
	}
	while (goes_on(&self->end)) {
		pid_t pid = fork();

		ASSERT_GE(pid, 0);
		if (!pid) {
			seed += getpid();
			if (map_at(self->other, variant->kind, self->size) != self->other)
				_exit(1);
			if (variant->kind != HUGETLB || rand_r(&seed) % 2)
				fill(self->other, self->units, self->unit, seed);
			usleep(rand_r(&seed) % 10000);
			_exit(0);
		}
		rand_r(&seed);
		for (children++; children > 2; children--) {
			ASSERT_GT(wait(&status), 0);
			ASSERT_EQ(status, 0);
		}
	}
	EXPECT_EQ(waitpid(disturber, NULL, WNOHANG), 0);
}

static unsigned long read_meminfo(const char *name)
{
	char line[128], found[64];
	unsigned long value = 0, kilobytes;
	FILE *file = fopen("/proc/meminfo", "r");

	while (file && fgets(line, sizeof(line), file))
		if (sscanf(line, "%63[^:]: %lu", found, &kilobytes) == 2 && !strcmp(found, name))
			value = kilobytes;
	if (file)
		fclose(file);
	return value;
}

/* A fork that ends half way takes back what it copied, while that is moved */
TEST_F_TIMEOUT(race, with_fork_that_fails, 300)
{
	unsigned long failed = 0, limit, swap = read_meminfo("SwapTotal");
	pid_t pid = -1;

	if (!may_change())
		SKIP(return, "limits what can be committed, which " NEEDS_DESTRUCTIVE);

	split_up(self->addr, self->units, self->unit);
	/* What comes last cannot be committed twice. */
	ASSERT_EQ(mprotect(self->room, ROOM_SIZE, PROT_READ | PROT_WRITE), 0);
	limit = read_meminfo("Committed_AS") + ROOM_SIZE / 2048;
	if (limit <= swap)
		SKIP(return, "needs less swap than can be committed");
	/* Each of these makes the other one 0: what is not, is put back last. */
	ASSERT_TRUE(remember_setting("/proc/sys/vm/overcommit_kbytes"));
	ASSERT_TRUE(remember_setting("/proc/sys/vm/overcommit_ratio"));
	ASSERT_TRUE(change_number("/proc/sys/vm/overcommit_kbytes", limit - swap));
	ASSERT_TRUE(change_number("/proc/sys/vm/overcommit_memory", 2));
	while (goes_on(&self->end) && pid < 0) {
		pid = fork();
		if (!pid)
			_exit(1);
		failed += pid < 0;
		if (!filled(self->addr, self->units, self->unit, SEED))
			break;
		let_move();
	}
	EXPECT_EQ(pid, -1);
	EXPECT_GT(failed, 0);
	EXPECT_TRUE(filled(self->addr, self->units, self->unit, SEED));
}

/* Entries go from one place to the other, and back to where the pages belong */
TEST_F_TIMEOUT(race, with_mremap_and_back, 300)
{
	while (goes_on(&self->end)) {
		ASSERT_EQ(mremap(self->addr, self->size, self->size,
				 MREMAP_MAYMOVE | MREMAP_FIXED, self->other), self->other);
		ASSERT_TRUE(filled(self->other, self->units, self->unit, SEED));
		ASSERT_EQ(mremap(self->other, self->size, self->size,
				 MREMAP_MAYMOVE | MREMAP_FIXED, self->addr), self->addr);
		ASSERT_TRUE(filled(self->addr, self->units, self->unit, SEED));
	}
}

/* VMAs change their ranges, both where the pages belong and where they were moved to */
TEST_F_TIMEOUT(race, with_splits_and_merges, 300)
{
	ASSERT_EQ(mremap(self->addr, self->size, self->size, MREMAP_MAYMOVE | MREMAP_FIXED,
			 self->other), self->other);
	ASSERT_EQ(map_at(self->addr, variant->kind, self->size), self->addr);
	fill(self->addr, self->units, self->unit, SEED);
	while (goes_on(&self->end)) {
		split_up(self->addr, self->units, self->unit);
		split_up(self->other, self->units, self->unit);
		ASSERT_TRUE(filled(self->other, self->units, self->unit, SEED));
		ASSERT_EQ(mprotect(self->other, self->size, PROT_READ | PROT_WRITE), 0);
		ASSERT_EQ(mprotect(self->addr, self->size, PROT_READ | PROT_WRITE), 0);
		ASSERT_TRUE(filled(self->addr, self->units, self->unit, SEED));
	}
}

struct toucher {
	pthread_barrier_t *barrier;
	char *addr;
	size_t unit;
	int units;
	int split;
};

static void *touch_or_split(void *data)
{
	struct toucher *toucher = data;

	pthread_barrier_wait(toucher->barrier);
	if (toucher->split)
		mprotect(toucher->addr + toucher->split * toucher->unit, toucher->unit,
			 PROT_READ | PROT_WRITE | PROT_EXEC);
	else
		fill(toucher->addr, toucher->units, toucher->unit, SEED);
	return NULL;
}

/*
 * The first touch of a mapping, by several threads, while another one splits it: memory
 * that its VMA does not know of would be missing in a child.
 */
TEST_F_TIMEOUT(race, with_first_touch, 300)
{
	struct toucher touchers[3] = {};
	pthread_barrier_t barrier;
	pthread_t threads[3];
	int i, status;
	pid_t pid;

	ASSERT_EQ(pthread_barrier_init(&barrier, NULL, 3), 0);
	while (goes_on(&self->end)) {
		ASSERT_EQ(map_at(self->addr, variant->kind, self->size), self->addr);
		for (i = 0; i < 3; i++) {
			touchers[i] = (struct toucher) {
				.barrier = &barrier,
				.addr = self->addr,
				.unit = self->unit,
				.units = self->units,
				.split = i == 2 ? self->units / 2 : 0,
			};
			ASSERT_EQ(pthread_create(&threads[i], NULL, touch_or_split,
						 &touchers[i]), 0);
		}
		for (i = 0; i < 3; i++)
			pthread_join(threads[i], NULL);

		pid = fork();
		ASSERT_GE(pid, 0);
		if (!pid)
			_exit(!filled(self->addr, self->units, self->unit, SEED));
		ASSERT_EQ(waitpid(pid, &status, 0), pid);
		ASSERT_EQ(status, 0);
	}
	pthread_barrier_destroy(&barrier);
}

/* Processes that have a copy, and VMAs that were moved, each with a page */
#define MANY_CHILDREN	1000
#define MANY_MOVED	10000
#define MANY_BYTES	(256UL << 20)

/* Forks of a storm, after which the next one begins */
#define STORM_FORKS	1000

#define NR_THREADS	3

/* No walk takes so long. */
#define MAX_SECONDS	60

/* A thread that moves some pages, and what it has seen of that */
struct mover {
	pthread_t thread;
	char *addr;
	int units;
	bool stop;
	unsigned long moved;	/* pages */
	double longest;		/* seconds for all of them */
};

/* With how many others of its mm a VMA shares offsets, at most; negative if unknown */
static long count_overlaps(void)
{
	return check_passes() ? checked("overlaps") : -2;
}

/* As many do so that they merge with what is beside them, and no more. */
#define MAX_OVERLAPS	3
#define BIRTHS		8

/* Where a mapping was born and moved away, others are born, which a walk for it must not visit. */
struct birth {
	long before;
	size_t size;
	int moves;
	char *born;	/* what is here is moved */
	char *moved;	/* here, time after time */
};

FIXTURE(birth)
{
	struct birth birth;
};

static char *map_anon(char *addr, size_t size)
{
	char *got = mmap(addr, size, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);

	return got == addr ? addr : NULL;
}

static bool move_from_to(char *from, char *to, size_t size, int flags)
{
	return mremap(from, size, size, MREMAP_MAYMOVE | MREMAP_FIXED | flags, to) == to;
}

FIXTURE_SETUP(birth)
{
	self->birth.before = count_overlaps();
	if (self->birth.before == -1)
		SKIP(return, "needs CONFIG_DEBUG_COW_CONTEXT and debugfs");
	ASSERT_GE(self->birth.before, 0);
	self->birth.size = psize() * MAX_UNITS;
	self->birth.born = reserve(4 * self->birth.size);
	ASSERT_NE(self->birth.born, NULL);
	/* What is around stays empty */
	self->birth.born += self->birth.size;
	self->birth.moved = reserve(BIRTHS * self->birth.size);
	ASSERT_NE(self->birth.moved, NULL);
}

static bool has_few_overlaps(struct birth *birth)
{
	const long nr = count_overlaps();

	return nr >= 0 && (nr <= MAX_OVERLAPS || nr <= birth->before);
}

FIXTURE_TEARDOWN(birth)
{
	if (self->birth.before < 0)
		return;
	EXPECT_TRUE(has_few_overlaps(&self->birth));
	for (int i = 0; i < self->birth.moves; i++)
		EXPECT_TRUE(filled(self->birth.moved + i * self->birth.size, MAX_UNITS, psize(),
				   SEED + 0x100 * i));
}

/* What is at @born gets memory, and is moved to where that before was. */
static bool fill_and_move(struct birth *birth, int flags)
{
	char *to = birth->moved + birth->moves * birth->size;

	fill(birth->born, MAX_UNITS, psize(), SEED + 0x100 * birth->moves);
	birth->moves++;
	return move_from_to(birth->born, to, birth->size, flags);
}

TEST_F_TIMEOUT(birth, by_mmap, 60)
{
	while (self->birth.moves < BIRTHS) {
		ASSERT_NE(map_anon(self->birth.born, self->birth.size), NULL);
		ASSERT_TRUE(fill_and_move(&self->birth, 0));
	}
}

TEST_F_TIMEOUT(birth, by_map_fixed, 60)
{
	const size_t half = self->birth.size / 2;

	while (self->birth.moves < BIRTHS) {
		/* Over what is there, half of which stays */
		ASSERT_NE(map_anon(self->birth.born, self->birth.size), NULL);
		ASSERT_NE(map_anon(self->birth.born + half, half), NULL);
		ASSERT_TRUE(fill_and_move(&self->birth, 0));
	}
}

TEST_F_TIMEOUT(birth, by_dontunmap, 60)
{
	ASSERT_NE(map_anon(self->birth.born, self->birth.size), NULL);
	while (self->birth.moves < BIRTHS)
		ASSERT_TRUE(fill_and_move(&self->birth, MREMAP_DONTUNMAP));
}

TEST_F_TIMEOUT(birth, by_mremap_without_memory, 60)
{
	char *other = reserve(self->birth.size);

	ASSERT_NE(other, NULL);
	while (self->birth.moves < BIRTHS) {
		ASSERT_NE(map_anon(other, self->birth.size), NULL);
		ASSERT_TRUE(move_from_to(other, self->birth.born, self->birth.size, 0));
		ASSERT_TRUE(fill_and_move(&self->birth, 0));
	}
}

/* It merges with what is on both sides, as long as not too many do so. */
TEST_F_TIMEOUT(birth, in_a_hole, 60)
{
	char *begin = self->birth.born - self->birth.size;

	ASSERT_NE(map_anon(begin, 3 * self->birth.size), NULL);
	fill(begin, 3 * MAX_UNITS, psize(), SEED);
	while (self->birth.moves < BIRTHS) {
		ASSERT_TRUE(fill_and_move(&self->birth, 0));
		ASSERT_NE(map_anon(self->birth.born, self->birth.size), NULL);
	}
}

static bool all_in_a_child(struct birth *birth, bool (*does)(struct birth *birth))
{
	pid_t pid = fork();
	int status;

	if (!pid)
		_exit(!does(birth) || !has_few_overlaps(birth));
	return pid > 0 && waitpid(pid, &status, 0) == pid && !status;
}

static bool move_heap(struct birth *birth)
{
	const unsigned long page = psize();
	char *from = (char *)(((unsigned long)sbrk(0) + page - 1) & -page);
	/* One page stays: brk() makes nothing smaller that is not there. */
	char *end = from + birth->size + page;

	if (brk(end))
		return false;
	for (int i = 0; i < BIRTHS; i++) {
		memset(from, i, birth->size);
		if (!move_from_to(from, birth->moved + i * birth->size, birth->size, 0) ||
		    brk(from) || sbrk(0) != from || brk(from + birth->size / 2) || brk(end))
			return false;
	}
	memset(from, BIRTHS, birth->size);
	return true;
}

/* Of a child, as the heap of the test is in use */
TEST_F_TIMEOUT(birth, by_brk, 60)
{
	EXPECT_TRUE(all_in_a_child(&self->birth, move_heap));
}

static bool move_what_is_there(struct birth *birth)
{
	struct birth mine = *birth;

	do {
		if (!fill_and_move(&mine, 0) || !map_anon(mine.born, mine.size))
			return false;
	} while (mine.moves < BIRTHS);
	return true;
}

TEST_F_TIMEOUT(birth, in_a_child, 60)
{
	ASSERT_NE(map_anon(self->birth.born, self->birth.size), NULL);
	fill(self->birth.born, MAX_UNITS, psize(), SEED);
	EXPECT_TRUE(all_in_a_child(&self->birth, move_what_is_there));
	EXPECT_TRUE(filled(self->birth.born, MAX_UNITS, psize(), SEED));
}

/* A stack grows over the offsets of what was split from it; walks find both. */
TEST_F_TIMEOUT(birth, of_a_stack, 60)
{
	const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED;
	char *top = self->birth.born + self->birth.size - 2 * psize(), *other = reserve(psize());

	ASSERT_NE(other, NULL);
	ASSERT_NE(map_anon(self->birth.born, self->birth.size), NULL);
	ASSERT_TRUE(fill_and_move(&self->birth, 0));
	ASSERT_EQ(munmap(self->birth.born - self->birth.size, 2 * self->birth.size), 0);
	ASSERT_EQ(mmap(top, 2 * psize(), PROT_READ | PROT_WRITE, flags, -1, 0), top);
	ASSERT_EQ(madvise(top, psize(), MADV_DONTFORK), 0);
	fill(top, 1, psize(), SEED);
	ASSERT_TRUE(move_from_to(top, other, psize(), 0));
	/* All of it, from the end */
	for (char *page = top + psize(); page >= self->birth.born; page -= psize())
		fill(page, 1, psize(), SEED + 0x100);
	EXPECT_GE(count_overlaps(), 1);
	for (char *page = self->birth.born; page <= top + psize(); page += psize())
		EXPECT_TRUE(filled(page, 1, psize(), SEED + 0x100));
	EXPECT_TRUE(filled(other, 1, psize(), SEED));
}

/* Is a range one mapping? */
static bool is_one_mapping(char *addr, size_t size)
{
	struct procmap_fd procmap;
	bool is_one;

	if (open_self_procmap(&procmap))
		return false;
	is_one = find_vma_procmap(&procmap, addr) &&
		 procmap.query.vma_end >= (unsigned long)addr + size;
	close_procmap(&procmap);
	return is_one;
}

/* They merge as others do, from below and from above, with memory or without. */
TEST_F_TIMEOUT(birth, beside_others, 60)
{
	char *born = self->birth.born;
	size_t size = self->birth.size;

	ASSERT_NE(map_anon(born, size), NULL);
	ASSERT_TRUE(fill_and_move(&self->birth, 0));
	ASSERT_NE(map_anon(born, size), NULL);
	ASSERT_NE(map_anon(born + size, size), NULL);
	EXPECT_TRUE(is_one_mapping(born, 2 * size));
	fill(born, 2 * MAX_UNITS, psize(), SEED + 0x100);
	ASSERT_NE(map_anon(born - size, size), NULL);
	EXPECT_TRUE(is_one_mapping(born - size, 3 * size));
	fill(born - size, MAX_UNITS, psize(), SEED + 0x100);
	/* A hole is filled */
	ASSERT_NE(map_anon(born, size), NULL);
	EXPECT_TRUE(is_one_mapping(born - size, 3 * size));
	/* Also if what was there has moved, and so is an end */
	ASSERT_TRUE(fill_and_move(&self->birth, 0));
	ASSERT_NE(map_anon(born, size), NULL);
	EXPECT_TRUE(is_one_mapping(born - size, 3 * size));
	ASSERT_TRUE(move_from_to(born + size, self->birth.moved + 2 * size, size, 0));
	ASSERT_NE(map_anon(born + size, size), NULL);
	EXPECT_TRUE(is_one_mapping(born - size, 3 * size));
	/* And a part is taken out and put back */
	ASSERT_EQ(mprotect(born, size, PROT_READ), 0);
	EXPECT_FALSE(is_one_mapping(born - size, 3 * size));
	ASSERT_EQ(mprotect(born, size, PROT_READ | PROT_WRITE), 0);
	EXPECT_TRUE(is_one_mapping(born - size, 3 * size));
}

/* Walks come to their end, however much goes on where they look. */
FIXTURE(load)
{
	struct mover mover;
	time_t end;
};

static double seconds_now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

static void *move_on(void *data)
{
	struct mover *mover = data;
	struct mapper mapper = { .pid = getpid() };
	int round, i;

	/* To each node at least once */
	for (round = 0; round < 2 || !__atomic_load_n(&mover->stop, __ATOMIC_RELAXED); round++) {
		double seconds = -seconds_now();

		for (i = 0; i < mover->units; i += MAX_UNITS) {
			int nr = mover->units - i < MAX_UNITS ? mover->units - i : MAX_UNITS;
			int there;

			mapper.addr = mover->addr + i * psize();
			there = move_to(&mapper, nr, psize(), round % 2);
			mover->moved += there > 0 ? there : 0;
		}
		seconds += seconds_now();
		if (seconds > mover->longest)
			mover->longest = seconds;
	}
	return NULL;
}

static bool begin_moving(struct mover *mover, char *addr, int units)
{
	mover->addr = addr;
	mover->units = units;
	fill(addr, units, psize(), SEED);
	return !pthread_create(&mover->thread, NULL, move_on, mover);
}

static char *map_pages(int units)
{
	char *addr = reserve(units * psize());

	return addr ? map_at(addr, ANON, units * psize()) : NULL;
}

FIXTURE_SETUP(load)
{
	const char *why = not_moved();

	if (why)
		SKIP(return, "%s", why);
	ASSERT_EQ(prctl(PR_SET_CHILD_SUBREAPER, 1), 0);
}

FIXTURE_TEARDOWN(load)
{
	struct mover *mover = &self->mover;
	char line[128];
	FILE *check;

	if (!mover->addr)
		return;
	__atomic_store_n(&mover->stop, true, __ATOMIC_RELAXED);
	pthread_join(mover->thread, NULL);
	EXPECT_GT(mover->moved, mover->units);
	EXPECT_LT(mover->longest, MAX_SECONDS);
	EXPECT_TRUE(filled(mover->addr, mover->units, psize(), SEED));
	EXPECT_TRUE(check_passes());
	TH_LOG("%lu pages moved, %d of them in %.2f s at most", mover->moved, mover->units,
	       mover->longest);
	check = fopen(COW_CHECK, "r");
	while (check && fgets(line, sizeof(line), check))
		if (!strncmp(line, "longest", 7))
			TH_LOG("since the kernel began, %s", strtok(line, "\n"));
	if (check)
		fclose(check);
	munmap(mover->addr, mover->units * psize());
}

/* What is forked while a walk goes on comes to stand in front of it. */
TEST_F_TIMEOUT(load, fork_storm, 600)
{
	struct shared *shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE,
				     MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	ASSERT_NE(shared, MAP_FAILED);
	ASSERT_TRUE(begin_moving(&self->mover, map_pages(1), 1));
	shared->max_forks = STORM_FORKS;
	while (goes_on(&self->end)) {
		pid_t pid;

		shared->forks = 0;
		shared->live = 1;
		pid = fork();
		ASSERT_GE(pid, 0);
		if (!pid)
			fork_and_exit(shared, SEED);
		reap_all();
	}
	EXPECT_EQ(shared->failed, 0);
	munmap(shared, sizeof(*shared));
}

TEST_F_TIMEOUT(load, many_children, 600)
{
	pid_t pids[MANY_CHILDREN];
	int nr;

	ASSERT_TRUE(begin_moving(&self->mover, map_pages(MAX_UNITS), MAX_UNITS));
	for (nr = 0; nr < MANY_CHILDREN; nr++) {
		pids[nr] = fork();
		if (!pids[nr])
			for (;;)
				pause();
		if (pids[nr] < 0)
			break;
	}
	EXPECT_EQ(nr, MANY_CHILDREN);
	while (goes_on(&self->end))
		sleep(1);
	while (nr--)
		kill(pids[nr], SIGKILL);
	reap_all();
}

/* In reverse order, so that each page is in a VMA of its own, away from where it began */
TEST_F_TIMEOUT(load, many_moved, 600)
{
	int nr = MANY_BYTES / psize() < MANY_MOVED ? MANY_BYTES / psize() : MANY_MOVED;
	char *from = map_pages(nr), *to = reserve(nr * psize());
	int status;
	pid_t pid;

	ASSERT_NE(from, NULL);
	ASSERT_NE(to, NULL);
	fill(from, nr, psize(), SEED);
	ASSERT_TRUE(move_one_by_one(from, to, nr));
	ASSERT_TRUE(begin_moving(&self->mover, to, nr));
	while (goes_on(&self->end)) {
		pid = fork();
		ASSERT_GE(pid, 0);
		if (!pid)
			_exit(!filled(to, nr, psize(), SEED));
		ASSERT_EQ(waitpid(pid, &status, 0), pid);
		ASSERT_EQ(status, 0);
	}
}

static void *map_and_unmap(void *data)
{
	size_t size = MAX_UNITS * psize();
	unsigned long failed = 0, rounds = 0;
	struct mover *mover = data;

	while (!__atomic_load_n(&mover->stop, __ATOMIC_RELAXED)) {
		char *addr = mmap(NULL, size, PROT_READ | PROT_WRITE,
				  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (addr == MAP_FAILED) {
			failed++;
			break;
		}
		fill(addr, MAX_UNITS, psize(), SEED);
		if (++rounds % 16 == 0)
			madvise(addr, size, MADV_PAGEOUT);
		failed += !filled(addr, MAX_UNITS, psize(), SEED);
		munmap(addr, size);
	}
	return (void *)failed;
}

/* As a server does: threads wait for the lock while pages of their process move, and go. */
TEST_F_TIMEOUT(load, threads_that_unmap, 600)
{
	pthread_t threads[NR_THREADS];
	void *failed;
	int i;

	ASSERT_TRUE(begin_moving(&self->mover, map_pages(RACE_UNITS), RACE_UNITS));
	for (i = 0; i < NR_THREADS; i++)
		ASSERT_EQ(pthread_create(&threads[i], NULL, map_and_unmap,
					 &self->mover), 0);
	while (goes_on(&self->end))
		sleep(1);
	__atomic_store_n(&self->mover.stop, true, __ATOMIC_RELAXED);
	for (i = 0; i < NR_THREADS; i++) {
		pthread_join(threads[i], &failed);
		EXPECT_EQ(failed, NULL);
	}
}

int main(int argc, char **argv)
{
	begin_changes(mmap(NULL, sizeof(*changes), PROT_READ | PROT_WRITE,
			   MAP_SHARED | MAP_ANONYMOUS, -1, 0), NULL);
	return test_harness_run(argc, argv);
}
