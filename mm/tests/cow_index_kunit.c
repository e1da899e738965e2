// SPDX-License-Identifier: GPL-2.0
/*
 * KUnit tests for the index of COW contexts: which VMAs of an mm does a walk
 * find for a range of page offsets?
 *
 * The mms and VMAs are real ones without page tables, put together by hand.  So
 * they can be put together wrongly: a VMA that mm->mm_mt has at a place where it
 * is not is all that a walk can tell of a VMA that was freed and used again while
 * the walk was looking at an old node.
 *
 * Most tests draw the address space, from address 0 on, with one character for a
 * page.  A lower case letter is a VMA with anonymous memory, an upper case letter one
 * without or, after move(), one that was moved; a dot is a hole.  What a walk has
 * found is a string of these letters, too.
 */
#include <kunit/test.h>
#include <linux/bitmap.h>
#include <linux/completion.h>
#include <linux/ctype.h>
#include <linux/delay.h>
#include <linux/hugetlb.h>
#include <linux/jiffies.h>
#include <linux/kthread.h>
#include <linux/maple_tree.h>
#include <linux/mm.h>
#include <linux/mmap_lock.h>
#include <linux/module.h>
#include <linux/prandom.h>
#include <linux/random.h>
#include <linux/rmap.h>
#include <linux/sched/mm.h>

#include "../cow_context.h"
#include "../internal.h"

static unsigned int seed;
module_param(seed, uint, 0444);
MODULE_PARM_DESC(seed, "Seed of the randomised tests, 0 for a random one");

#define TEST_VMAS	128
#define TEST_FLAGS	(VM_READ | VM_WRITE | VM_MAYREAD | VM_MAYWRITE)

struct test_mm {
	struct kunit *test;
	struct mm_struct *mm;
	struct cow_context *context;
	/* By letter, in tests that draw */
	struct vm_area_struct *vmas[TEST_VMAS];
	bool moved[TEST_VMAS];
	/* The munmap that is published */
	struct maple_tree detached;
	struct cow_unmapping unmapping;
	/* What visit() has found; has room for what must not be found */
	char found[2 * TEST_VMAS];
};

static void test_mm_exit(void *data)
{
	struct test_mm *tm = data;
	unsigned int i;

	mmap_write_lock(tm->mm);
	if (tm->mm->cow_context)
		cow_context_detach(tm->context);
	__mt_destroy(&tm->mm->mm_mt);
	mmap_write_unlock(tm->mm);

	if (tm->unmapping.vmas)
		mtree_destroy(tm->unmapping.vmas);
	for (i = 0; i < TEST_VMAS; i++) {
		if (tm->vmas[i])
			vm_area_free(tm->vmas[i]);
	}
	mmput(tm->mm);
}

static struct test_mm *test_mm_init(struct kunit *test)
{
	struct test_mm *tm = kunit_kzalloc(test, sizeof(*tm), GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, tm);
	tm->test = test;
	tm->mm = mm_alloc();
	KUNIT_ASSERT_NOT_NULL(test, tm->mm);
	tm->context = tm->mm->cow_context;
	KUNIT_ASSERT_EQ(test, kunit_add_action_or_reset(test, test_mm_exit, tm), 0);
	return tm;
}

static void set_range(struct vm_area_struct *vma, pgoff_t first, unsigned long nr,
		      pgoff_t pgoff)
{
	vma->vm_start = first << PAGE_SHIFT;
	vma->vm_end = (first + nr) << PAGE_SHIFT;
	vma->vm_pgoff = pgoff;
	__vma_set_anon_pgoff(vma, pgoff);
}

/* A VMA that is in no tree and has no anonymous memory */
static struct vm_area_struct *alloc_vma(struct mm_struct *mm, pgoff_t first,
					unsigned long nr, pgoff_t pgoff)
{
	struct vm_area_struct *vma = vm_area_alloc(mm);

	if (vma) {
		vm_flags_init(vma, TEST_FLAGS);
		set_range(vma, first, nr, pgoff);
	}
	return vma;
}

static struct vm_area_struct *new_vma(struct test_mm *tm, unsigned int id,
				      pgoff_t first, unsigned long nr, pgoff_t pgoff)
{
	struct vm_area_struct *vma = alloc_vma(tm->mm, first, nr, pgoff);

	KUNIT_ASSERT_NOT_NULL(tm->test, vma);
	KUNIT_ASSERT_NULL(tm->test, tm->vmas[id]);
	vma->vm_private_data = (void *)(unsigned long)id;
	tm->vmas[id] = vma;
	return vma;
}

static void free_vma(struct test_mm *tm, unsigned int id)
{
	vm_area_free(tm->vmas[id]);
	tm->vmas[id] = NULL;
	tm->moved[id] = false;
}

static int store_entry(struct mm_struct *mm, pgoff_t first, unsigned long nr,
		       struct vm_area_struct *entry)
{
	MA_STATE(mas, &mm->mm_mt, first << PAGE_SHIFT,
		 ((first + nr) << PAGE_SHIFT) - 1);
	int err;

	mmap_write_lock(mm);
	err = mas_store_gfp(&mas, entry, GFP_KERNEL);
	mmap_write_unlock(mm);
	return err;
}

/* Put into mm->mm_mt, at whatever place, a VMA or NULL. */
static void store(struct test_mm *tm, pgoff_t first, unsigned long nr,
		  struct vm_area_struct *entry)
{
	KUNIT_ASSERT_EQ(tm->test, store_entry(tm->mm, first, nr, entry), 0);
}

/* A VMA that is in mm->mm_mt gets its first anonymous memory. */
static void enter(struct test_mm *tm, unsigned int id)
{
	struct vm_area_struct *vma = tm->vmas[id];
	struct cow_moved *moved;

	KUNIT_ASSERT_EQ(tm->test, cow_moved_prealloc(vma, &moved), 0);
	tm->moved[id] = moved;
	mmap_write_lock(tm->mm);
	cow_index_enter(vma, moved);
	mmap_write_unlock(tm->mm);
}

static void leave(struct test_mm *tm, unsigned int id)
{
	mmap_write_lock(tm->mm);
	cow_context_lock_write(tm->context);
	cow_index_del(tm->vmas[id]);
	cow_context_unlock_write(tm->context);
	mmap_write_unlock(tm->mm);
	tm->moved[id] = false;
}

/* Its memory comes from somewhere else. */
static void move(struct test_mm *tm, unsigned int id, pgoff_t pgoff)
{
	__vma_set_anon_pgoff(tm->vmas[id], pgoff);
	enter(tm, id);
	KUNIT_EXPECT_TRUE(tm->test, tm->moved[id]);
}

static int make_moved(struct vm_area_struct *vma)
{
	int err;

	mmap_write_lock(vma->vm_mm);
	vma_start_write(vma);
	err = cow_index_make_moved(vma);
	mmap_write_unlock(vma->vm_mm);
	return err;
}

static void draw(struct test_mm *tm, const char *map)
{
	unsigned int first, nr;

	for (first = 0; map[first]; first += nr) {
		const char id = map[first];

		for (nr = 1; map[first + nr] == id; nr++)
			;
		if (id == '.')
			continue;
		store(tm, first, nr, new_vma(tm, id, first, nr, first));
		if (islower(id))
			enter(tm, id);
	}
}

/* What a munmap does before it clears mm->mm_mt: @names are in order. */
static void publish(struct test_mm *tm, pgoff_t first, unsigned long nr,
		    const char *names)
{
	unsigned int i;

	mt_init(&tm->detached);
	tm->unmapping = (struct cow_unmapping) {
		.vmas = &tm->detached,
		.nr = strlen(names),
		.start = first << PAGE_SHIFT,
		.end = (first + nr) << PAGE_SHIFT,
	};
	for (i = 0; names[i]; i++)
		KUNIT_ASSERT_EQ(tm->test, 0,
				mtree_store(&tm->detached, i,
					    tm->vmas[(int)names[i]], GFP_KERNEL));

	cow_context_lock_write(tm->context);
	cow_context_set_unmapping(tm->context, &tm->unmapping);
	cow_context_unlock_write(tm->context);
}

/* What it does in the end, or with no @names what it does if it fails. */
static void withdraw(struct test_mm *tm, const char *names)
{
	const char *name;

	mmap_write_lock(tm->mm);
	cow_context_lock_write(tm->context);
	for (name = names; *name; name++)
		cow_index_del(tm->vmas[(int)*name]);
	cow_context_set_unmapping(tm->context, NULL);
	cow_context_unlock_write(tm->context);
	mmap_write_unlock(tm->mm);

	mtree_destroy(tm->unmapping.vmas);
	tm->unmapping.vmas = NULL;
	for (name = names; *name; name++) {
		KUNIT_EXPECT_FALSE(tm->test, vma_has_anon(tm->vmas[(int)*name]));
		free_vma(tm, *name);
	}
}

/* Some walks have nothing to remember. */
static void forget(struct cow_context *context)
{
	cow_context_lock_write(context);
	cow_context_unlock_write(context);
}

static const char *visit(struct test_mm *tm, pgoff_t first, pgoff_t last)
{
	DEFINE_COW_VMA_ITER(iter, tm->context, first, last);
	struct vm_area_struct *vma;
	unsigned int nr = 0;

	down_read(&tm->context->rwsem);
	while (nr < sizeof(tm->found) - 1 && (vma = cow_vma_iter_next(&iter)))
		tm->found[nr++] = (unsigned long)vma->vm_private_data;
	up_read(&tm->context->rwsem);
	tm->found[nr] = 0;
	return tm->found;
}

/*
 * Do walks find what @map draws, for each range in it?  Moved VMAs come last.  To
 * have them in alphabetical order their offsets must be.
 */
static void expect_map(struct test_mm *tm, const char *map, const char *when)
{
	const unsigned int end = strlen(map) + 2;
	char want[TEST_VMAS + 1];
	unsigned int first, last;

	for (first = 0; first < end; first++) {
		for (last = first; last < end; last++) {
			unsigned int nr = 0, i;

			for (i = first; i <= last && i < strlen(map); i++) {
				if (islower(map[i]) && (!nr || want[nr - 1] != map[i]))
					want[nr++] = map[i];
			}
			for (i = 0; i < TEST_VMAS; i++) {
				if (tm->moved[i] &&
				    vma_start_anon_pgoff(tm->vmas[i]) <= last &&
				    vma_last_anon_pgoff(tm->vmas[i]) >= first)
					want[nr++] = i;
			}
			want[nr] = 0;
			if ((first + last) % 2)
				forget(tm->context);
			/* One report will do. */
			if (!strcmp(visit(tm, first, last), want))
				continue;
			KUNIT_FAIL(tm->test, "%s, %s: %u to %u: found \"%s\", want \"%s\"",
				   map, when, first, last, tm->found, want);
			return;
		}
	}
}

static void test_seed(struct kunit *test, struct rnd_state *rnd)
{
	const unsigned int s = seed ?: get_random_u32();

	kunit_info(test, "seed=%u\n", s);
	prandom_seed_state(rnd, s);
}

static void cow_index_unmoved(struct kunit *test)
{
	struct test_mm *tm = test_mm_init(test);

	KUNIT_EXPECT_STREQ(test, visit(tm, 0, 100), "");

	draw(tm, "..aabb.cccXXddY.e");
	expect_map(tm, "..aabb.cccXXddY.e", "at first");
	KUNIT_EXPECT_STREQ(test, visit(tm, 3, 12), "abcd");
	KUNIT_EXPECT_STREQ(test, visit(tm, 10, 11), "");
	KUNIT_EXPECT_STREQ(test, visit(tm, 16, 100), "e");
	KUNIT_EXPECT_STREQ(test, visit(tm, 17, 100), "");

	/* A first touch, and another one */
	mmap_read_lock(tm->mm);
	vma_set_anon(tm->vmas['X']);
	vma_set_anon(tm->vmas['X']);
	vma_set_anon(tm->vmas['c']);
	mmap_read_unlock(tm->mm);
	KUNIT_EXPECT_STREQ(test, visit(tm, 3, 12), "abcXd");
	KUNIT_EXPECT_TRUE(test, vma_has_anon(tm->vmas['X']));
	KUNIT_EXPECT_FALSE(test, vma_has_anon(tm->vmas['Y']));

	/* MAP_FIXED over it: it is still in the tree. */
	leave(tm, 'c');
	leave(tm, 'Y');
	KUNIT_EXPECT_STREQ(test, visit(tm, 0, 100), "abXde");
	KUNIT_EXPECT_FALSE(test, vma_has_anon(tm->vmas['c']));
	enter(tm, 'c');
	KUNIT_EXPECT_STREQ(test, visit(tm, 0, 100), "abcXde");
}

/* Both ends of the address space, and page offsets that are behind its end */
static void cow_index_far_offsets(struct kunit *test)
{
	const pgoff_t end = ULONG_MAX >> PAGE_SHIFT;
	struct test_mm *tm = test_mm_init(test);

	draw(tm, "a....b");
	store(tm, end - 2, 2, new_vma(tm, 'z', end - 2, 2, end - 2));
	enter(tm, 'z');

	KUNIT_EXPECT_STREQ(test, visit(tm, end + 6, end + 6), "");
	KUNIT_EXPECT_STREQ(test, visit(tm, 0, 0), "a");
	KUNIT_EXPECT_STREQ(test, visit(tm, end - 3, end - 3), "");
	KUNIT_EXPECT_STREQ(test, visit(tm, end - 1, end - 1), "z");
	KUNIT_EXPECT_STREQ(test, visit(tm, end, end), "");
	KUNIT_EXPECT_STREQ(test, visit(tm, 0, end), "abz");
	KUNIT_EXPECT_STREQ(test, visit(tm, 0, ULONG_MAX), "abz");
	KUNIT_EXPECT_STREQ(test, visit(tm, 1, end + 1), "bz");
	KUNIT_EXPECT_STREQ(test, visit(tm, end + 1, end + 1), "");
	KUNIT_EXPECT_STREQ(test, visit(tm, end + 1, ULONG_MAX), "");
	KUNIT_EXPECT_STREQ(test, visit(tm, ULONG_MAX, ULONG_MAX), "");

	store(tm, 7, 3, new_vma(tm, 'M', 7, 3, 7));
	move(tm, 'M', end + 5);
	KUNIT_EXPECT_STREQ(test, visit(tm, end + 5, end + 5), "M");
	KUNIT_EXPECT_STREQ(test, visit(tm, end + 7, end + 7), "M");
	KUNIT_EXPECT_STREQ(test, visit(tm, end + 8, ULONG_MAX), "");
	KUNIT_EXPECT_STREQ(test, visit(tm, 0, ULONG_MAX), "abzM");
	KUNIT_EXPECT_STREQ(test, visit(tm, 7, 9), "");
}

static void cow_index_moved(struct kunit *test)
{
	struct test_mm *tm = test_mm_init(test);
	struct vm_area_struct *vma;
	struct cow_moved *moved;

	draw(tm, "aaaa.BBBB.CC.DD.eeeeFFGGGGHHHH");
	/* B to D have offsets of others and of each other, G and H the same. */
	move(tm, 'B', 2);
	move(tm, 'C', 4);
	move(tm, 'D', 16);
	expect_map(tm, "aaaa............eeee", "moved");
	KUNIT_EXPECT_STREQ(test, visit(tm, 5, 5), "BC");
	KUNIT_EXPECT_STREQ(test, visit(tm, 6, 8), "");
	KUNIT_EXPECT_STREQ(test, visit(tm, 3, 16), "aeBCD");

	move(tm, 'G', 40);
	move(tm, 'H', 40);
	KUNIT_EXPECT_STREQ(test, visit(tm, 43, 50), "GH");
	KUNIT_EXPECT_STREQ(test, visit(tm, 39, 40), "GH");
	KUNIT_EXPECT_STREQ(test, visit(tm, 22, 39), "");
	KUNIT_EXPECT_STREQ(test, visit(tm, 44, ULONG_MAX), "");

	/* Moved in place, it is found by its offset alone, though it is there. */
	KUNIT_ASSERT_EQ(test, make_moved(tm->vmas['e']), 0);
	KUNIT_EXPECT_STREQ(test, visit(tm, 3, 17), "aBCDe");
	KUNIT_ASSERT_EQ(test, make_moved(tm->vmas['F']), 0);
	KUNIT_EXPECT_STREQ(test, visit(tm, 20, 21), "F");
	/* A second time it has nothing to do. */
	moved = (struct cow_moved *)tm->vmas['F']->vm_cow;
	KUNIT_ASSERT_EQ(test, make_moved(tm->vmas['F']), 0);
	KUNIT_EXPECT_PTR_EQ(test, moved, (struct cow_moved *)tm->vmas['F']->vm_cow);
	KUNIT_EXPECT_STREQ(test, visit(tm, 20, 21), "F");

	/* Its last page goes, and it gets others in front: offsets 1 to 4. */
	vma = tm->vmas['B'];
	mmap_write_lock(tm->mm);
	cow_context_lock_write(tm->context);
	cow_index_pre_update(vma);
	set_range(vma, 4, 4, 1);
	cow_index_post_update(vma);
	cow_context_unlock_write(tm->context);
	mmap_write_unlock(tm->mm);
	store(tm, 4, 4, vma);
	store(tm, 8, 1, NULL);
	KUNIT_EXPECT_STREQ(test, visit(tm, 1, 1), "aB");
	KUNIT_EXPECT_STREQ(test, visit(tm, 5, 5), "C");
	KUNIT_EXPECT_STREQ(test, visit(tm, 4, 4), "BC");

	leave(tm, 'C');
	leave(tm, 'G');
	KUNIT_EXPECT_STREQ(test, visit(tm, 4, 40), "BDeFH");
	KUNIT_EXPECT_FALSE(test, vma_has_anon(tm->vmas['C']));
}

/* What a walk remembers is not used when the VMA has left, or is elsewhere. */
static void cow_index_hint(struct kunit *test)
{
	struct test_mm *tm = test_mm_init(test);
	struct vm_area_struct *vma;

	draw(tm, "aaaabbcC");
	vma = tm->vmas['a'];
	KUNIT_EXPECT_STREQ(test, visit(tm, 1, 1), "a");
	KUNIT_EXPECT_PTR_EQ(test, cow_hint_vma(tm->context->hint), vma);
	expect_map(tm, "aaaabbcC", "remembered");

	/* It shrinks. */
	KUNIT_EXPECT_STREQ(test, visit(tm, 3, 3), "a");
	store(tm, 3, 1, NULL);
	cow_context_lock_write(tm->context);
	set_range(vma, 0, 3, 0);
	cow_context_unlock_write(tm->context);
	KUNIT_EXPECT_STREQ(test, visit(tm, 3, 3), "");
	KUNIT_EXPECT_STREQ(test, visit(tm, 2, 4), "ab");

	/* Moved in place, it comes once, and behind those that were not. */
	KUNIT_EXPECT_STREQ(test, visit(tm, 0, 0), "a");
	KUNIT_ASSERT_EQ(test, make_moved(vma), 0);
	KUNIT_EXPECT_STREQ(test, visit(tm, 0, 0), "a");
	KUNIT_EXPECT_STREQ(test, visit(tm, 0, 4), "ba");

	/* A munmap has it, with another one in its place, and then it is gone. */
	KUNIT_EXPECT_STREQ(test, visit(tm, 4, 4), "b");
	publish(tm, 4, 2, "b");
	store(tm, 4, 2, tm->vmas['c']);
	KUNIT_EXPECT_STREQ(test, visit(tm, 5, 5), "b");
	withdraw(tm, "b");
	KUNIT_EXPECT_STREQ(test, visit(tm, 5, 5), "");

	KUNIT_EXPECT_STREQ(test, visit(tm, 6, 6), "c");
	leave(tm, 'c');
	KUNIT_EXPECT_STREQ(test, visit(tm, 6, 6), "");
}

static void attach(struct test_mm *tm, struct vm_area_struct *vma, bool attached)
{
	mmap_write_lock(tm->mm);
	vma_start_write(vma);
	if (attached)
		vma_mark_attached(vma);
	else
		vma_mark_detached(vma);
	mmap_write_unlock(tm->mm);
}

/* As if it had to wait */
static void contend(struct test_mm *tm)
{
	__cow_context_lock_write(tm->context);
	cow_context_unlock_write(tm->context);
	KUNIT_EXPECT_TRUE(tm->test, tm->context->hint & COW_HINT_CONTENDED);
}

/* What a walk for these offsets holds: an mm by a dot, or that VMA in it. */
static char held_by_walk(struct test_mm *tm, pgoff_t first, pgoff_t last)
{
	DEFINE_COW_CONTEXT_WALK(walk, tm->context, false);
	bool locked;
	char held;

	walk.first = first;
	walk.last = last;
	KUNIT_EXPECT_PTR_EQ(tm->test, cow_context_walk_next(&walk), tm->context);
	held = walk.vma ? (unsigned long)walk.vma->vm_private_data : '.';

	/* What changes another VMA need not wait. */
	locked = !down_write_trylock(&tm->context->rwsem);
	KUNIT_EXPECT_EQ(tm->test, locked, held == '.');
	if (!locked)
		up_write(&tm->context->rwsem);
	KUNIT_EXPECT_NULL(tm->test, cow_context_walk_next(&walk));
	KUNIT_EXPECT_NULL(tm->test, walk.vma);
	return held;
}

/* A walk holds the only VMA that it is for, if another one had to be waited for. */
static void cow_index_contended(struct kunit *test)
{
	struct test_mm *tm = test_mm_init(test);
	DEFINE_COW_CONTEXT_WALK(walk, tm->context, true);
	struct vm_area_struct *a, *b;

	if (!IS_ENABLED(CONFIG_PER_VMA_LOCK))
		kunit_skip(test, "VMAs have no locks of their own");

	draw(tm, "aaaabbcC");
	a = tm->vmas['a'];
	b = tm->vmas['b'];
	attach(tm, a, true);
	attach(tm, b, true);
	KUNIT_EXPECT_EQ(test, held_by_walk(tm, 1, 1), '.');

	contend(tm);
	/* By the tree, by the hint, and by the tree again */
	KUNIT_EXPECT_EQ(test, held_by_walk(tm, 1, 1), 'a');
	KUNIT_EXPECT_EQ(test, held_by_walk(tm, 0, 3), 'a');
	KUNIT_EXPECT_EQ(test, held_by_walk(tm, 5, 5), 'b');
	KUNIT_EXPECT_EQ(test, held_by_walk(tm, 1, 1), 'a');
	/* Not both of two, nor what is not attached, or not there */
	KUNIT_EXPECT_EQ(test, held_by_walk(tm, 3, 4), '.');
	KUNIT_EXPECT_EQ(test, held_by_walk(tm, 6, 6), '.');
	KUNIT_EXPECT_EQ(test, held_by_walk(tm, 8, 8), '.');

	/* Nor a VMA that is locked */
	KUNIT_EXPECT_EQ(test, held_by_walk(tm, 1, 1), 'a');
	mmap_write_lock(tm->mm);
	vma_start_write(a);
	KUNIT_EXPECT_EQ(test, held_by_walk(tm, 1, 1), '.');
	KUNIT_EXPECT_EQ(test, held_by_walk(tm, 4, 4), 'b');
	mmap_write_unlock(tm->mm);
	KUNIT_EXPECT_EQ(test, held_by_walk(tm, 1, 1), 'a');

	/* Nor one whose folio may be in another one, which was moved */
	KUNIT_ASSERT_EQ(test, make_moved(b), 0);
	KUNIT_EXPECT_EQ(test, held_by_walk(tm, 1, 1), 'a');
	KUNIT_EXPECT_EQ(test, held_by_walk(tm, 4, 4), '.');
	cow_context_lock_write(tm->context);
	cow_index_pre_update(b);
	__vma_set_anon_pgoff(b, 1);
	cow_index_post_update(b);
	cow_context_unlock_write(tm->context);
	KUNIT_EXPECT_EQ(test, held_by_walk(tm, 1, 1), '.');
	KUNIT_EXPECT_EQ(test, held_by_walk(tm, 0, 0), 'a');

	/* Not while that is about to change, either */
	cow_context_lock_write(tm->context);
	cow_index_pre_update(b);
	walk.first = 1;
	walk.last = 1;
	KUNIT_EXPECT_NULL(test, cow_context_walk_next(&walk));
	KUNIT_EXPECT_TRUE(test, walk.contended);
	cow_context_walk_end(&walk);
	cow_index_post_update(b);
	cow_context_unlock_write(tm->context);

	/* Nor one that has left the index */
	KUNIT_EXPECT_EQ(test, held_by_walk(tm, 0, 0), 'a');
	leave(tm, 'a');
	KUNIT_EXPECT_EQ(test, tm->context->hint, COW_HINT_CONTENDED);
	KUNIT_EXPECT_EQ(test, held_by_walk(tm, 0, 0), '.');

	attach(tm, a, false);
	attach(tm, b, false);
}

struct leaver {
	struct mm_struct *mm;
	bool left;
};

static int leaver_fn(void *data)
{
	struct leaver *leaver = data;

	mmap_write_lock(leaver->mm);
	mm_leave_cow_context(leaver->mm);
	WRITE_ONCE(leaver->left, true);
	mmap_write_unlock(leaver->mm);
	return 0;
}

/* An mm does not leave its context while a walk holds nothing but a VMA. */
static void cow_index_contended_exit(struct kunit *test)
{
	struct test_mm *tm = test_mm_init(test);
	DEFINE_COW_CONTEXT_WALK(walk, tm->context, false);
	struct leaver leaver = { .mm = tm->mm };
	struct vm_area_struct *vma;
	struct task_struct *task;

	if (!IS_ENABLED(CONFIG_PER_VMA_LOCK))
		kunit_skip(test, "VMAs have no locks of their own");

	draw(tm, "aaaa");
	vma = tm->vmas['a'];
	attach(tm, vma, true);
	contend(tm);

	walk.first = 1;
	walk.last = 1;
	KUNIT_ASSERT_PTR_EQ(test, cow_context_walk_next(&walk), tm->context);
	KUNIT_ASSERT_PTR_EQ(test, walk.vma, vma);

	task = kthread_run(leaver_fn, &leaver, "cow_leaver");
	KUNIT_ASSERT_FALSE(test, IS_ERR(task));
	get_task_struct(task);
	for (int i = 0; i < 100 && READ_ONCE(task->__state) != TASK_UNINTERRUPTIBLE; i++)
		msleep(20);
	KUNIT_EXPECT_EQ(test, READ_ONCE(task->__state), TASK_UNINTERRUPTIBLE);
	msleep(50);
	KUNIT_ASSERT_FALSE(test, READ_ONCE(leaver.left));

	KUNIT_EXPECT_NULL(test, cow_context_walk_next(&walk));
	KUNIT_EXPECT_EQ(test, kthread_stop(task), 0);
	put_task_struct(task);
	KUNIT_EXPECT_TRUE(test, leaver.left);
	attach(tm, vma, false);
}

static void cow_index_prealloc(struct kunit *test)
{
	struct test_mm *tm = test_mm_init(test);
	struct cow_moved *moved;

	draw(tm, "..AABB");
	moved = (struct cow_moved *)tm;
	KUNIT_ASSERT_EQ(test, cow_moved_prealloc(tm->vmas['A'], &moved), 0);
	KUNIT_EXPECT_NULL(test, moved);
	cow_moved_free(moved);

	__vma_set_anon_pgoff(tm->vmas['B'], 2);
	KUNIT_ASSERT_EQ(test, cow_moved_prealloc(tm->vmas['B'], &moved), 0);
	KUNIT_EXPECT_NOT_NULL(test, moved);
	cow_moved_free(moved);
	KUNIT_EXPECT_STREQ(test, visit(tm, 0, ULONG_MAX), "");

	/* A moved VMA of a page, with the offset of its neighbour */
	enter(tm, 'A');
	enter(tm, 'B');
	KUNIT_EXPECT_STREQ(test, visit(tm, 0, ULONG_MAX), "AB");
	KUNIT_EXPECT_STREQ(test, visit(tm, 4, 5), "");
	KUNIT_EXPECT_FALSE(test, vma_is_moved(tm->vmas['A']));
	KUNIT_EXPECT_TRUE(test, vma_is_moved(tm->vmas['B']));
}

/* mm->mm_mt has a VMA that belongs to another mm now. */
static void cow_index_stale_foreign(struct kunit *test)
{
	struct test_mm *tm = test_mm_init(test);
	struct test_mm *other = test_mm_init(test);

	draw(tm, "aa......bbcc....dd");
	draw(other, "....xxYYzz..WWWW");
	move(other, 'W', 14);
	store(tm, 2, 2, other->vmas['Y']);	/* elsewhere */
	store(tm, 4, 2, other->vmas['x']);	/* at the same place */
	store(tm, 6, 2, other->vmas['Y']);
	store(tm, 12, 2, other->vmas['z']);
	store(tm, 14, 2, other->vmas['W']);	/* where its offsets are */
	expect_map(tm, "aa......bbcc....dd", "foreign VMAs");
	KUNIT_EXPECT_STREQ(test, visit(other, 0, ULONG_MAX), "xzW");
}

/* mm->mm_mt has a VMA that is elsewhere in the same mm now. */
static void cow_index_stale_elsewhere(struct kunit *test)
{
	struct test_mm *tm = test_mm_init(test);

	/* Ahead, with others in between: nearest last, and nearest first */
	draw(tm, "aa......bb.cc.dd....ee......ff");
	store(tm, 2, 2, tm->vmas['d']);
	store(tm, 4, 2, tm->vmas['c']);
	store(tm, 6, 2, tm->vmas['b']);
	expect_map(tm, "aa......bb.cc.dd....ee......ff", "stale ahead");
	store(tm, 2, 2, tm->vmas['b']);
	store(tm, 6, 2, tm->vmas['f']);
	expect_map(tm, "aa......bb.cc.dd....ee......ff", "stale ahead");

	/* Behind, and right behind */
	store(tm, 16, 1, tm->vmas['d']);
	store(tm, 17, 2, tm->vmas['a']);
	store(tm, 22, 2, tm->vmas['e']);
	store(tm, 24, 3, tm->vmas['c']);
	expect_map(tm, "aa......bb.cc.dd....ee......ff", "stale behind");

	/* Larger than where it is now, and than where it was */
	store(tm, 30, 4, new_vma(tm, 'g', 30, 4, 30));
	enter(tm, 'g');
	store(tm, 10, 1, tm->vmas['g']);
	store(tm, 34, 8, tm->vmas['f']);
	store(tm, 42, 1, new_vma(tm, 'h', 42, 1, 42));
	enter(tm, 'h');
	KUNIT_EXPECT_STREQ(test, visit(tm, 9, 50), "bcdefgh");
	KUNIT_EXPECT_STREQ(test, visit(tm, 10, 10), "");
	KUNIT_EXPECT_STREQ(test, visit(tm, 35, 41), "");
	KUNIT_EXPECT_STREQ(test, visit(tm, 35, 42), "h");
	KUNIT_EXPECT_STREQ(test, visit(tm, 10, 11), "c");
}

/* mm->mm_mt has moved VMAs where their offsets are, and ones without memory. */
static void cow_index_stale_moved(struct kunit *test)
{
	struct test_mm *tm = test_mm_init(test);

	draw(tm, "aa....BBccDDEE..ff");
	move(tm, 'B', 3);
	move(tm, 'D', 8);
	store(tm, 3, 2, tm->vmas['B']);
	store(tm, 5, 1, tm->vmas['E']);
	store(tm, 14, 1, tm->vmas['D']);
	store(tm, 15, 1, tm->vmas['E']);
	expect_map(tm, "aa....BBccDDEE..ff", "stale");
}

static const struct unmap_case {
	const char *map;
	pgoff_t first;
	unsigned long nr;
	const char *names;
} unmap_cases[] = {
	{ "..aa..", 2, 2, "a" },
	{ "aabbcc", 2, 2, "b" },
	{ "aabbcc", 0, 6, "abc" },
	{ "..aabbccdd..", 4, 4, "bc" },
	{ "aabbbcdd..", 2, 4, "bc" },
	/* Holes in it, and at its ends */
	{ ".aa.b..ccc.dd...ee.", 3, 13, "bcd" },
	{ ".aa..b.....c..dd", 4, 9, "bc" },
	{ "..a..b", 0, 4, "a" },
	/* VMAs without memory in it */
	{ "aaXXbbYYccZZdd", 2, 10, "XbYcZ" },
	{ "a.XX.YY.b", 1, 7, "XY" },
	{ "XXbbYY", 0, 4, "Xb" },
	/* Large ones, and many */
	{ "abbbbbbbbbbbbccccccccccccd", 1, 24, "bc" },
	{ "abcdefghijklmnopqrstuvwxyz", 1, 24, "bcdefghijklmnopqrstuvwxy" },
	{ "abcdefghijklmnopqrstuvwxyz", 0, 25, "abcdefghijklmnopqrstuvwxy" },
	{ "a.b.c.dd.e.f.g.hh.i.j..k.l.m.n.o.p.qqq.r.s.t.u.v.w", 2, 47,
	  "bcdefghijklmnopqrstuv" },
	{ "aAbBcCdDeEfFgGhHiIjJkKlLmMnNoO", 2, 26, "bBcCdDeEfFgGhHiIjJkKlLmMnN" },
};

static void cow_index_unmapping(struct kunit *test)
{
	const struct unmap_case *c = test->param_value;
	struct test_mm *tm = test_mm_init(test);
	unsigned long i;
	char *left;

	draw(tm, c->map);
	expect_map(tm, c->map, "mapped");

	/* One that fails, and one that does not */
	publish(tm, c->first, c->nr, c->names);
	expect_map(tm, c->map, "published");
	withdraw(tm, "");
	expect_map(tm, c->map, "withdrawn");

	publish(tm, c->first, c->nr, c->names);
	store(tm, c->first, c->nr, NULL);
	expect_map(tm, c->map, "cleared");
	/* It replaces what is in the tree, whatever that is. */
	for (i = 0; i < c->nr; i++)
		store(tm, c->first + i, 1,
		      tm->vmas[(int)c->names[i % strlen(c->names)]]);
	expect_map(tm, c->map, "cleared, stale");
	store(tm, c->first, c->nr, NULL);

	left = kunit_kstrdup(test, c->map, GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, left);
	memset(left + c->first, '.', c->nr);
	withdraw(tm, c->names);
	expect_map(tm, left, "unmapped");
}

static void unmap_case_desc(const struct unmap_case *c, char *desc)
{
	snprintf(desc, KUNIT_PARAM_DESC_SIZE, "%s from %lu to %lu", c->map,
		 (unsigned long)c->first, (unsigned long)c->first + c->nr - 1);
}

KUNIT_ARRAY_PARAM(unmap, unmap_cases, unmap_case_desc);

/* Moved VMAs are found by their offsets, also while they are being unmapped. */
static void cow_index_unmapping_moved(struct kunit *test)
{
	struct test_mm *tm = test_mm_init(test);

	draw(tm, "aabbCCDDeeff.");
	move(tm, 'C', 3);
	move(tm, 'D', 11);
	expect_map(tm, "aabbCCDDeeff.", "mapped");
	publish(tm, 2, 8, "bCDe");
	expect_map(tm, "aabbCCDDeeff.", "published");
	store(tm, 2, 8, NULL);
	expect_map(tm, "aabbCCDDeeff.", "cleared");
	withdraw(tm, "bCDe");
	expect_map(tm, "aa........ff.", "unmapped");
}

/* As dup_mmap() fills the tree of the child */
static void cow_index_fork(struct kunit *test)
{
	struct test_mm *parent = test_mm_init(test);
	struct test_mm *child = test_mm_init(test);
	int err;

	draw(parent, "aabb.XXCCdd.EE");
	move(parent, 'C', 5);
	move(parent, 'E', 6);

	mmap_write_lock(parent->mm);
	mmap_write_lock_nested(child->mm, SINGLE_DEPTH_NESTING);
	err = __mt_dup(&parent->mm->mm_mt, &child->mm->mm_mt, GFP_KERNEL);
	cow_context_fork(child->context, parent->context);
	mmap_write_unlock(child->mm);
	mmap_write_unlock(parent->mm);
	KUNIT_ASSERT_EQ(test, err, 0);

	expect_map(child, "..............", "all the parent's");
	store(child, 0, 2, new_vma(child, 'a', 0, 2, 0));
	expect_map(child, "..............", "one without memory yet");
	enter(child, 'a');
	expect_map(child, "aa............", "one");
	/* VM_DONTCOPY */
	store(child, 2, 2, NULL);
	store(child, 5, 2, new_vma(child, 'X', 5, 2, 5));
	expect_map(child, "aa............", "three");
	store(child, 7, 2, new_vma(child, 'C', 7, 2, 5));
	enter(child, 'C');
	expect_map(child, "aa............", "four");
	store(child, 9, 2, new_vma(child, 'd', 9, 2, 9));
	enter(child, 'd');
	expect_map(child, "aa.......dd...", "all but one");
	/* VM_WIPEONFORK */
	store(child, 12, 2, new_vma(child, 'E', 12, 2, 12));
	expect_map(child, "aa.......dd...", "all");

	expect_map(parent, "aabb.XXCCdd.EE", "the parent");
}

#define MODEL_VMAS	40
#define MODEL_PAGES	160
#define MODEL_STEPS	5000

struct model_vma {
	bool used;
	bool indexed;
	bool moved;
	pgoff_t first;
	unsigned long nr;
	pgoff_t pgoff;
};

struct model {
	struct test_mm *tm;
	struct vm_area_struct *foreign;
	struct rnd_state rnd;
	struct model_vma vmas[MODEL_VMAS];
	bool wrong;
	/* How often each operation found something to do */
	unsigned int done[16];
};

static unsigned int model_random(struct model *m, unsigned int ceil)
{
	return prandom_u32_state(&m->rnd) % ceil;
}

static struct model_vma *model_find(struct model *m, pgoff_t page)
{
	struct model_vma *v;

	for (v = m->vmas; v < m->vmas + MODEL_VMAS; v++) {
		if (v->used && v->first <= page && page - v->first < v->nr)
			return v;
	}
	return NULL;
}

static bool model_is_free(struct model *m, pgoff_t first, unsigned long nr)
{
	while (nr--) {
		if (first >= MODEL_PAGES || model_find(m, first++))
			return false;
	}
	return true;
}

/* Any VMA in use, or any that is not */
static struct model_vma *model_pick(struct model *m, bool used)
{
	unsigned int begin = model_random(m, MODEL_VMAS), i;

	for (i = 0; i < MODEL_VMAS; i++) {
		struct model_vma *v = &m->vmas[(begin + i) % MODEL_VMAS];

		if (v->used == used)
			return v;
	}
	return NULL;
}

/* Not 0, so that some make a string */
static unsigned int model_id(struct model *m, struct model_vma *v)
{
	return 1 + (v - m->vmas);
}

static struct vm_area_struct *real(struct model *m, struct model_vma *v)
{
	return m->tm->vmas[model_id(m, v)];
}

static bool model_covers(struct model_vma *v, pgoff_t first, pgoff_t last)
{
	return v->used && v->indexed && v->pgoff <= last &&
	       v->pgoff + v->nr - 1 >= first;
}

static void model_visit(struct model *m, pgoff_t first, pgoff_t last)
{
	DEFINE_COW_VMA_ITER(iter, m->tm->context, first, last);
	DECLARE_BITMAP(want, MODEL_VMAS + 1) = {};
	struct model_vma *v, *prev = NULL;
	const char *wrong = NULL;
	struct vm_area_struct *vma;
	unsigned int id;

	for (v = m->vmas; v < m->vmas + MODEL_VMAS; v++)
		__assign_bit(model_id(m, v), want, model_covers(v, first, last));

	if (first % 2)
		forget(m->tm->context);
	down_read(&m->tm->context->rwsem);
	while (!wrong && (vma = cow_vma_iter_next(&iter))) {
		id = (unsigned long)vma->vm_private_data;
		if (vma->vm_mm != m->tm->mm || !id || id > MODEL_VMAS) {
			wrong = "found a foreign VMA";
			break;
		}
		v = &m->vmas[id - 1];
		if (!__test_and_clear_bit(id, want))
			wrong = model_covers(v, first, last) ? "found it twice" :
							       "must not find it";
		else if (prev && prev->moved && !v->moved)
			wrong = "found it after moved ones";
		else if (prev && !v->moved && v->first < prev->first)
			wrong = "found it out of order";
		prev = v;
	}
	up_read(&m->tm->context->rwsem);

	if (!wrong && !bitmap_empty(want, MODEL_VMAS + 1)) {
		prev = &m->vmas[find_first_bit(want, MODEL_VMAS + 1) - 1];
		wrong = "missed it";
	}
	if (!wrong)
		return;
	m->wrong = true;
	kunit_err(m->tm->test, "%lu to %lu: %s: pages %lu to %lu, offset %lu, %s",
		  first, last, wrong, prev ? prev->first : 0,
		  prev ? prev->first + prev->nr - 1 : 0,
		  prev ? prev->pgoff : 0,
		  prev && prev->moved ? "moved" : "unmoved");
}

/* Compare what walks find with the model; @when may be NULL. */
static void model_check(struct model *m, const char *when)
{
	struct cow_context *context = m->tm->context;
	struct rb_node *node;
	unsigned int i;
	pgoff_t first;

	for (i = 0; i < 4 && !m->wrong; i++) {
		first = model_random(m, MODEL_PAGES + 16);
		model_visit(m, first, first + model_random(m, 24));
	}
	if (!m->wrong)
		model_visit(m, 0, ULONG_MAX);

	down_read(&context->rwsem);
	first = ULONG_MAX;
	for (node = rb_first_cached(&context->moved); node; node = rb_next(node)) {
		const struct cow_moved *moved = rb_entry(node, struct cow_moved, rb);

		first = min(first, vma_start_anon_pgoff(moved->vma));
	}
	if (first != context->moved_first)
		m->wrong = true;
	up_read(&context->rwsem);
	if (m->wrong && when)
		kunit_err(m->tm->test, "%s", when);
}

/* Before it is freed: the tree may have it at other places. */
static void model_erase(struct model *m, struct vm_area_struct *vma)
{
	MA_STATE(mas, &m->tm->mm->mm_mt, 0, 0);
	struct vm_area_struct *entry;

	mmap_write_lock(m->tm->mm);
	while ((entry = mas_find(&mas, ULONG_MAX))) {
		if (entry == vma)
			mas_erase(&mas);
	}
	mmap_write_unlock(m->tm->mm);
}

static void model_free(struct model *m, struct model_vma *v)
{
	model_erase(m, real(m, v));
	free_vma(m->tm, model_id(m, v));
	v->used = false;
}

static void model_lock(struct model *m)
{
	mmap_write_lock(m->tm->mm);
	cow_context_lock_write(m->tm->context);
}

static void model_unlock(struct model *m)
{
	cow_context_unlock_write(m->tm->context);
	mmap_write_unlock(m->tm->mm);
}

static bool model_map(struct model *m)
{
	struct model_vma *v = model_pick(m, false);
	struct test_mm *tm = m->tm;

	if (!v)
		return false;
	*v = (struct model_vma) {
		.first = model_random(m, MODEL_PAGES),
		.nr = 1 + model_random(m, 8),
		.indexed = model_random(m, 3),
	};
	if (!model_is_free(m, v->first, v->nr))
		return false;
	v->pgoff = v->first;
	if (v->indexed && !model_random(m, 2)) {
		v->pgoff = model_random(m, MODEL_PAGES + 16);
		v->moved = v->pgoff != v->first;
	}

	store(tm, v->first, v->nr,
	      new_vma(tm, model_id(m, v), v->first, v->nr, v->pgoff));
	if (v->indexed)
		enter(tm, model_id(m, v));
	v->used = true;
	return true;
}

static bool model_touch(struct model *m)
{
	struct model_vma *v = model_pick(m, true);

	if (!v || v->moved)
		return false;
	mmap_read_lock(m->tm->mm);
	vma_set_anon(real(m, v));
	mmap_read_unlock(m->tm->mm);
	v->indexed = true;
	return true;
}

static bool model_split(struct model *m)
{
	struct model_vma *v = model_pick(m, true), *new = model_pick(m, false);
	const bool new_below = model_random(m, 2);
	struct vm_area_struct *vma, *added;
	struct cow_moved *moved = NULL;
	struct model_vma upper;

	if (!v || !new || v->nr < 2)
		return false;
	*new = *v;
	upper = *v;
	new->nr = 1 + model_random(m, v->nr - 1);
	upper.first += new->nr;
	upper.pgoff += new->nr;
	upper.nr -= new->nr;
	if (new_below) {
		*v = upper;
	} else {
		*v = *new;
		*new = upper;
	}

	vma = real(m, v);
	added = new_vma(m->tm, model_id(m, new), new->first, new->nr, new->pgoff);
	if (v->indexed)
		KUNIT_ASSERT_EQ(m->tm->test, cow_moved_prealloc(added, &moved), 0);
	/* Not even if @v is: that may have been moved in place, and back. */
	new->moved = moved;

	store(m->tm, new->first, new->nr, added);
	model_lock(m);
	cow_index_pre_update(vma);
	set_range(vma, v->first, v->nr, v->pgoff);
	cow_index_post_update(vma);
	if (v->indexed)
		cow_index_add(added, moved);
	model_unlock(m);
	return true;
}

static bool model_merge(struct model *m)
{
	struct model_vma *v = model_pick(m, true), *next;
	struct vm_area_struct *target;
	struct model_vma merged;

	next = v ? model_find(m, v->first + v->nr) : NULL;
	if (!next || v->pgoff + v->nr != next->pgoff)
		return false;
	merged = *v;
	merged.nr += next->nr;
	if (model_random(m, 2))
		swap(v, next);
	/* Now @next goes. */
	merged.indexed = v->indexed || next->indexed;
	merged.moved = v->moved;
	*v = merged;

	target = real(m, v);
	store(m->tm, v->first, v->nr, target);
	model_lock(m);
	cow_index_pre_update(target);
	set_range(target, v->first, v->nr, v->pgoff);
	cow_index_post_update(target);
	if (v->indexed && !vma_has_anon(target))
		cow_index_add(target, NULL);
	cow_index_del(real(m, next));
	model_unlock(m);
	model_free(m, next);
	return true;
}

/* Growing, shrinking, and what exec does with its stack */
static bool model_resize(struct model *m)
{
	struct model_vma *v = model_pick(m, true);
	long front = (long)model_random(m, 9) - 4;
	long back = (long)model_random(m, 9) - 4;
	const bool in_place = !model_random(m, 4);
	struct vm_area_struct *vma;
	struct model_vma old;

	if (!v)
		return false;
	if (in_place)
		back = -front;
	old = *v;
	if ((long)v->first < front || (long)v->nr + front + back <= 0)
		return false;
	if (!in_place && (long)v->pgoff < front)
		return false;

	v->used = false;
	if (!model_is_free(m, old.first - front, old.nr + front + back)) {
		v->used = true;
		return false;
	}
	vma = real(m, v);
	if (in_place) {
		KUNIT_ASSERT_EQ(m->tm->test, make_moved(vma), 0);
		v->indexed = true;
		v->moved = true;
	} else {
		v->pgoff -= front;
	}
	v->first -= front;
	v->nr += front + back;
	v->used = true;

	store(m->tm, old.first, old.nr, NULL);
	store(m->tm, v->first, v->nr, vma);
	model_lock(m);
	cow_index_pre_update(vma);
	set_range(vma, v->first, v->nr, v->pgoff);
	cow_index_post_update(vma);
	model_unlock(m);
	return true;
}

/* MREMAP_DONTUNMAP */
static bool model_leave(struct model *m)
{
	struct model_vma *v = model_pick(m, true);

	if (!v)
		return false;
	leave(m->tm, model_id(m, v));
	v->indexed = false;
	v->moved = false;
	v->pgoff = v->first;
	__vma_set_anon_pgoff(real(m, v), v->pgoff);
	return true;
}

/* A VMA where it is not */
static bool model_stale(struct model *m)
{
	struct model_vma *v = model_pick(m, true);
	pgoff_t first = model_random(m, MODEL_PAGES);
	unsigned long nr = 1 + model_random(m, 8);

	if (!model_is_free(m, first, nr))
		return false;
	store(m->tm, first, nr, v && model_random(m, 5) ? real(m, v) : m->foreign);
	return true;
}

static bool model_unmap(struct model *m)
{
	pgoff_t first = model_random(m, MODEL_PAGES), page;
	unsigned long nr = 1 + model_random(m, 40);
	struct model_vma *v;
	char names[MODEL_VMAS + 1];
	unsigned int count = 0;

	/* No VMA only in part */
	nr = min(nr, MODEL_PAGES - first);
	v = model_find(m, first);
	if (v) {
		nr += first - v->first;
		first = v->first;
	}
	v = model_find(m, first + nr - 1);
	if (v)
		nr = v->first + v->nr - first;

	for (page = first; page < first + nr; page++) {
		v = model_find(m, page);
		if (v && v->first == page)
			names[count++] = model_id(m, v);
	}
	if (!count)
		return false;
	names[count] = 0;

	publish(m->tm, first, nr, names);
	model_check(m, "published");
	if (m->wrong || !model_random(m, 4)) {
		withdraw(m->tm, "");
		return true;
	}

	store(m->tm, first, nr, NULL);
	model_check(m, "cleared");
	v = model_pick(m, true);
	store(m->tm, first + model_random(m, nr), 1, real(m, v));
	model_check(m, "cleared, stale");

	while (count--) {
		v = &m->vmas[names[count] - 1];
		model_erase(m, real(m, v));
		v->used = false;
	}
	withdraw(m->tm, names);
	return true;
}

static void cow_index_model(struct kunit *test)
{
	static bool (*const ops[])(struct model *m) = {
		model_map, model_map, model_map, model_map, model_touch,
		model_split, model_merge, model_resize, model_resize,
		model_leave, model_stale, model_stale, model_unmap,
	};
	struct model *m = kunit_kzalloc(test, sizeof(*m), GFP_KERNEL);
	unsigned int step, op;

	KUNIT_ASSERT_NOT_NULL(test, m);
	test_seed(test, &m->rnd);
	m->tm = test_mm_init(test);
	/* Not to be found, whatever its word */
	m->foreign = new_vma(test_mm_init(test), 1, 3, MODEL_PAGES, 3);
	m->foreign->vm_cow = (unsigned long)m->foreign->vm_mm->cow_context |
			     VM_COW_UNMOVED;

	for (step = 0; step < MODEL_STEPS; step++) {
		op = model_random(m, ARRAY_SIZE(ops));
		m->done[op] += ops[op](m);
		model_check(m, NULL);
		KUNIT_ASSERT_FALSE_MSG(test, m->wrong, "step %u, %ps", step, ops[op]);
		cond_resched();
	}
	for (op = 0; op < ARRAY_SIZE(ops); op++)
		KUNIT_EXPECT_GT_MSG(test, m->done[op], 0, "never done: %ps", ops[op]);
}

/*
 * A thread maps and unmaps VMAs between others that stay.  It leaves the
 * lock alone but for VMAs in the index that it takes away, so that walks go on while
 * VMAs are freed and used again, for another place, or for another mm.
 */
#define RACE_SLOTS	64
#define RACE_SLOT_PAGES	4
#define RACE_TIME	HZ

struct race {
	struct test_mm *tm, *other;
	struct rnd_state rnd;
	unsigned long mapped;
	int err;
	bool stop;
	struct completion done;
};

/* Odd slots of either mm; the VMA belongs to the thread. */
static int race_map(struct race *race, unsigned int slot)
{
	struct test_mm *tm = prandom_u32_state(&race->rnd) % 4 ? race->tm : race->other;
	const bool indexed = tm == race->other || !(prandom_u32_state(&race->rnd) % 4);
	unsigned int begin = prandom_u32_state(&race->rnd) % RACE_SLOT_PAGES;
	pgoff_t first = slot * RACE_SLOT_PAGES + begin;
	unsigned long nr = RACE_SLOT_PAGES - begin;
	struct vm_area_struct *vma;
	int err;

	vma = alloc_vma(tm->mm, first, nr, first);
	if (!vma)
		return -ENOMEM;
	err = store_entry(tm->mm, first, nr, vma);
	if (err) {
		vm_area_free(vma);
		return err;
	}
	if (indexed) {
		mmap_write_lock(tm->mm);
		cow_index_enter(vma, NULL);
		mmap_write_unlock(tm->mm);
	}
	/* So that it goes in the end, wherever it is */
	race->tm->vmas[slot] = vma;
	race->mapped++;
	return 0;
}

static int race_unmap(struct race *race, unsigned int slot)
{
	struct vm_area_struct *vma = race->tm->vmas[slot];
	struct cow_context *context = vma->vm_mm->cow_context;
	int err;

	if (vma_has_anon(vma)) {
		mmap_write_lock(vma->vm_mm);
		cow_context_lock_write(context);
		cow_index_del(vma);
		cow_context_unlock_write(context);
		mmap_write_unlock(vma->vm_mm);
	}
	err = store_entry(vma->vm_mm, slot * RACE_SLOT_PAGES, RACE_SLOT_PAGES, NULL);
	if (!err)
		free_vma(race->tm, slot);
	return err;
}

static int race_fn(void *data)
{
	struct race *race = data;
	unsigned int slot;

	while (!READ_ONCE(race->stop) && !race->err) {
		slot = prandom_u32_state(&race->rnd) % RACE_SLOTS | 1;
		if (race->tm->vmas[slot])
			race->err = race_unmap(race, slot);
		/* Likely the same object, elsewhere */
		slot = prandom_u32_state(&race->rnd) % RACE_SLOTS | 1;
		if (!race->tm->vmas[slot] && !race->err)
			race->err = race_map(race, slot);
		cond_resched();
	}
	for (slot = 1; slot < RACE_SLOTS; slot += 2) {
		if (race->tm->vmas[slot] && !race->err)
			race->err = race_unmap(race, slot);
	}
	complete(&race->done);
	return 0;
}

static const char *race_walk(struct race *race, pgoff_t first, pgoff_t last)
{
	const unsigned long unmoved = (unsigned long)race->tm->context | VM_COW_UNMOVED;
	DEFINE_COW_VMA_ITER(iter, race->tm->context, first, last);
	unsigned int slot, want = first / RACE_SLOT_PAGES;
	unsigned long start, end, behind = 0;
	struct vm_area_struct *vma;
	const char *wrong = NULL;

	/* The first one that stays, and must be found */
	want += want & 1;

	down_read(&race->tm->context->rwsem);
	while (!wrong && (vma = cow_vma_iter_next(&iter))) {
		start = vma->vm_start;
		end = vma->vm_end;
		cond_resched();
		slot = (start >> PAGE_SHIFT) / RACE_SLOT_PAGES;

		if (READ_ONCE(vma->vm_mm) != race->tm->mm ||
		    READ_ONCE(vma->vm_cow) != unmoved)
			wrong = "found one that is not in the index";
		else if (READ_ONCE(vma->vm_start) != start ||
			 READ_ONCE(vma->vm_end) != end)
			wrong = "changed under the lock";
		else if (start < behind)
			wrong = "found twice, or out of order";
		else if (start >> PAGE_SHIFT > last || end <= first << PAGE_SHIFT)
			wrong = "found one outside the range";
		else if (!(slot & 1) && slot != want)
			wrong = "missed one";
		if (!(slot & 1))
			want += 2;
		behind = end;
	}
	up_read(&race->tm->context->rwsem);

	if (!wrong && want < RACE_SLOTS && want * RACE_SLOT_PAGES <= last)
		wrong = "missed the last one";
	return wrong;
}

static void cow_index_race(struct kunit *test)
{
	struct race *race = kunit_kzalloc(test, sizeof(*race), GFP_KERNEL);
	const pgoff_t pages = RACE_SLOTS * RACE_SLOT_PAGES;
	const char *wrong = NULL;
	struct task_struct *task;
	unsigned long end, walks = 0;
	struct rnd_state rnd;
	unsigned int slot;
	pgoff_t first;

	KUNIT_ASSERT_NOT_NULL(test, race);
	race->other = test_mm_init(test);
	race->tm = test_mm_init(test);
	init_completion(&race->done);
	test_seed(test, &rnd);
	prandom_seed_state(&race->rnd, prandom_u32_state(&rnd));

	for (slot = 0; slot < RACE_SLOTS; slot += 2) {
		first = slot * RACE_SLOT_PAGES;
		store(race->tm, first, RACE_SLOT_PAGES,
		      new_vma(race->tm, slot, first, RACE_SLOT_PAGES, first));
		enter(race->tm, slot);
	}

	task = kthread_run(race_fn, race, "cow_index");
	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, task);
	for (end = jiffies + RACE_TIME; time_before(jiffies, end) && !wrong; walks++) {
		first = prandom_u32_state(&rnd) % pages;
		if (walks & 1)
			wrong = race_walk(race, 0, ULONG_MAX);
		else
			wrong = race_walk(race, first,
					  first + prandom_u32_state(&rnd) % pages);
		cond_resched();
	}
	WRITE_ONCE(race->stop, true);
	wait_for_completion(&race->done);

	kunit_info(test, "%lu walks, %lu VMAs mapped\n", walks, race->mapped);
	KUNIT_EXPECT_NULL_MSG(test, wrong, "%s", wrong);
	KUNIT_EXPECT_EQ(test, race->err, 0);
	KUNIT_EXPECT_GT(test, race->mapped, 0);
}

#ifdef CONFIG_HUGETLB_PAGE
struct visits {
	unsigned int nr;
	unsigned int wrong_kind;
};

static bool count_visit(struct folio *folio, struct vm_area_struct *vma,
			unsigned long addr, void *arg)
{
	struct visits *visits = arg;

	visits->nr++;
	visits->wrong_kind += is_vm_hugetlb_page(vma) != folio_test_hugetlb(folio);
	return true;
}

static struct visits walk_at(struct test_mm *tm, struct folio *folio, pgoff_t index)
{
	struct visits visits = {};
	struct rmap_walk_control rwc = {
		.rmap_one = count_visit,
		.arg = &visits,
		.pinned = true,
	};

	folio_lock(folio);
	folio->mapping = (void *)tm->context + FOLIO_MAPPING_ANON;
	folio->index = index;
	rmap_walk(folio, &rwc);
	folio->mapping = NULL;
	folio_unlock(folio);
	KUNIT_EXPECT_EQ(tm->test, visits.wrong_kind, 0);
	return visits;
}

/* Where a folio was, a VMA of the other kind may be by now. */
static void cow_index_hugetlb(struct kunit *test)
{
	struct test_mm *tm = test_mm_init(test);
	struct folio *folio = folio_alloc(GFP_KERNEL, 0);

	KUNIT_ASSERT_NOT_NULL(test, folio);
	draw(tm, "aaH");
	mmap_write_lock(tm->mm);
	vm_flags_set(tm->vmas['H'], VM_HUGETLB);
	mmap_write_unlock(tm->mm);
	enter(tm, 'H');
	KUNIT_EXPECT_STREQ(test, visit(tm, 0, 2), "aH");

	KUNIT_EXPECT_EQ(test, walk_at(tm, folio, 1).nr, 1);
	KUNIT_EXPECT_EQ(test, walk_at(tm, folio, 2).nr, 0);
	__folio_set_hugetlb(folio);
	KUNIT_EXPECT_EQ(test, walk_at(tm, folio, 1).nr, 0);
	KUNIT_EXPECT_EQ(test, walk_at(tm, folio, 2).nr, 1);
	__folio_clear_hugetlb(folio);
	folio_put(folio);
}
#endif

/* What is mapped where a moved VMA was gets offsets that no other has. */
static pgoff_t new_pgoff(struct test_mm *tm, pgoff_t home, unsigned long nr,
			 unsigned int max)
{
	pgoff_t pgoff;

	mmap_write_lock(tm->mm);
	pgoff = cow_index_new_pgoff(tm->context, home, nr, max);
	mmap_write_unlock(tm->mm);
	return pgoff;
}

static void cow_index_new_offsets(struct kunit *test)
{
	struct test_mm *tm = test_mm_init(test);

	draw(tm, "aaBBBccDDEEEEFF");
	/* As long as nothing was moved, they are those of the address. */
	KUNIT_EXPECT_EQ(test, new_pgoff(tm, 2, 3, 1), 2);

	move(tm, 'B', 102);
	KUNIT_EXPECT_EQ(test, new_pgoff(tm, 100, 2, 1), 100);
	KUNIT_EXPECT_EQ(test, new_pgoff(tm, 105, 2, 1), 105);
	KUNIT_EXPECT_EQ(test, new_pgoff(tm, 100, 3, 1), COW_PLANE + 100);
	KUNIT_EXPECT_EQ(test, new_pgoff(tm, 104, 1, 1), COW_PLANE + 104);

	/* The same plane does for others, as long as they are elsewhere. */
	move(tm, 'D', COW_PLANE + 103);
	KUNIT_EXPECT_EQ(test, new_pgoff(tm, 102, 1, 1), COW_PLANE + 102);
	KUNIT_EXPECT_EQ(test, new_pgoff(tm, 102, 2, 1), 2 * COW_PLANE + 102);
	KUNIT_EXPECT_EQ(test, new_pgoff(tm, 100, 2, 1), 100);

	/* How many have some of them is counted up to a limit. */
	move(tm, 'F', 102);
	KUNIT_EXPECT_EQ(test, new_pgoff(tm, 100, 3, 3), 100);
	KUNIT_EXPECT_EQ(test, new_pgoff(tm, 100, 3, 2), COW_PLANE + 100);
	mmap_write_lock(tm->mm);
	KUNIT_EXPECT_EQ(test, cow_index_count(tm->context, 100, 2, 4), 0);
	KUNIT_EXPECT_EQ(test, cow_index_count(tm->context, 100, 3, 4), 2);
	KUNIT_EXPECT_EQ(test, cow_index_count(tm->context, 104, 9, 4), 1);
	KUNIT_EXPECT_EQ(test, cow_index_count(tm->context, 100, 9, 1), 1);
	KUNIT_EXPECT_EQ(test, cow_index_count(tm->context, -9UL, 10, 4), 4);
	mmap_write_unlock(tm->mm);
	leave(tm, 'F');

	/* Above the last plane is the first. */
	move(tm, 'E', -COW_PLANE + 101);
	KUNIT_EXPECT_EQ(test, new_pgoff(tm, 100, 1, 1), 100);
	KUNIT_EXPECT_EQ(test, new_pgoff(tm, 102, 1, 1), COW_PLANE + 102);
	KUNIT_EXPECT_EQ(test, new_pgoff(tm, 104, 1, 1), 2 * COW_PLANE + 104);
	leave(tm, 'E');
	leave(tm, 'B');
	KUNIT_EXPECT_EQ(test, new_pgoff(tm, 104, 1, 1), 104);
}

static struct kunit_case cow_index_test_cases[] = {
	KUNIT_CASE(cow_index_unmoved),
	KUNIT_CASE(cow_index_far_offsets),
	KUNIT_CASE(cow_index_hint),
	KUNIT_CASE(cow_index_contended),
	KUNIT_CASE(cow_index_contended_exit),
	KUNIT_CASE(cow_index_prealloc),
	KUNIT_CASE(cow_index_moved),
	KUNIT_CASE(cow_index_new_offsets),
	KUNIT_CASE(cow_index_stale_foreign),
	KUNIT_CASE(cow_index_stale_elsewhere),
	KUNIT_CASE(cow_index_stale_moved),
	KUNIT_CASE_PARAM(cow_index_unmapping, unmap_gen_params),
	KUNIT_CASE(cow_index_unmapping_moved),
	KUNIT_CASE(cow_index_fork),
#ifdef CONFIG_HUGETLB_PAGE
	KUNIT_CASE(cow_index_hugetlb),
#endif
	KUNIT_CASE_SLOW(cow_index_model),
	KUNIT_CASE_SLOW(cow_index_race),
	{}
};

static struct kunit_suite cow_index_test_suite = {
	.name = "cow_index",
	.test_cases = cow_index_test_cases,
};

kunit_test_suite(cow_index_test_suite);

MODULE_DESCRIPTION("Tests for the index of COW contexts");
MODULE_LICENSE("GPL");
