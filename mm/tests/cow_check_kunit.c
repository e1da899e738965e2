// SPDX-License-Identifier: GPL-2.0
/*
 * KUnit tests for the check of anonymous memory: does it see what is wrong?
 *
 * The memory is that of the test's own thread, and is damaged by hand.
 */
#include <kunit/resource.h>
#include <kunit/test.h>
#include <linux/mm.h>
#include <linux/mman.h>
#include <linux/mmap_lock.h>
#include <linux/module.h>
#include <linux/pagemap.h>
#include <linux/rmap.h>
#include <linux/uaccess.h>

#include "../cow_context.h"
#include "../internal.h"

#define NR_PAGES	8

struct test_memory {
	struct cow_context *context;
	struct vm_area_struct *vma;
	struct folio *folio;
	unsigned long addr;
};

KUNIT_DEFINE_ACTION_WRAPPER(unpin, unpin_folio, struct folio *);

static struct test_memory *memory_init(struct kunit *test)
{
	struct test_memory *memory = kunit_kzalloc(test, sizeof(*memory), GFP_KERNEL);
	struct page *page;
	int i;

	KUNIT_ASSERT_NOT_NULL(test, memory);
	memory->addr = kunit_vm_mmap(test, NULL, 0, NR_PAGES * PAGE_SIZE,
				     PROT_READ | PROT_WRITE,
				     MAP_ANONYMOUS | MAP_PRIVATE, 0);
	KUNIT_ASSERT_LT(test, memory->addr, TASK_SIZE);
	KUNIT_ASSERT_NE(test, memory->addr, 0);
	for (i = 0; i < NR_PAGES; i++)
		KUNIT_ASSERT_EQ(test, put_user(1, (char __user *)memory->addr +
					       i * PAGE_SIZE), 0);

	KUNIT_ASSERT_EQ(test, pin_user_pages_fast(memory->addr, 1, FOLL_WRITE, &page), 1);
	memory->folio = page_folio(page);
	KUNIT_ASSERT_EQ(test, kunit_add_action_or_reset(test, unpin, memory->folio), 0);
	KUNIT_ASSERT_FALSE(test, folio_test_large(memory->folio));

	mmap_read_lock(current->mm);
	memory->vma = vma_lookup(current->mm, memory->addr);
	mmap_read_unlock(current->mm);
	KUNIT_ASSERT_NOT_NULL(test, memory->vma);
	memory->context = current->mm->cow_context;
	return memory;
}

/* What a check finds wrong with the memory, all of which it looks at */
static unsigned long nr_wrong(struct kunit *test)
{
	struct cow_check check = { .quiet = true };

	KUNIT_EXPECT_EQ(test, cow_check_mm(&check, current->mm), 0);
	KUNIT_EXPECT_EQ(test, check.mms, 1);
	KUNIT_EXPECT_EQ(test, check.pages, NR_PAGES);
	return check.wrong;
}

static void test_nothing_wrong(struct kunit *test)
{
	memory_init(test);
	KUNIT_EXPECT_EQ(test, nr_wrong(test), 0);
}

static void test_vma_not_in_index(struct kunit *test)
{
	struct test_memory *memory = memory_init(test);
	const unsigned long word = memory->vma->vm_cow;

	cow_context_lock_write(current->mm->cow_context);
	memory->vma->vm_cow = 0;
	WRITE_ONCE(current->mm->cow_context->hint, 0);
	cow_context_unlock_write(current->mm->cow_context);
	KUNIT_EXPECT_EQ(test, nr_wrong(test), NR_PAGES);
	memory->vma->vm_cow = word;
	KUNIT_EXPECT_EQ(test, nr_wrong(test), 0);
}

static void test_moved_vma_not_in_index(struct kunit *test)
{
	struct test_memory *memory = memory_init(test);
	struct rb_root_cached moved;
	int err;

	mmap_write_lock(current->mm);
	vma_start_write(memory->vma);
	err = cow_index_make_moved(memory->vma);
	mmap_write_unlock(current->mm);
	KUNIT_ASSERT_EQ(test, err, 0);
	KUNIT_EXPECT_EQ(test, nr_wrong(test), 0);

	moved = memory->context->moved;
	memory->context->moved = RB_ROOT_CACHED;
	KUNIT_EXPECT_EQ(test, nr_wrong(test), NR_PAGES);
	memory->context->moved = moved;
	KUNIT_EXPECT_EQ(test, nr_wrong(test), 0);
}

static void test_writable_page_not_exclusive(struct kunit *test)
{
	struct test_memory *memory = memory_init(test);

	ClearPageAnonExclusive(&memory->folio->page);
	KUNIT_EXPECT_EQ(test, nr_wrong(test), 1);
	SetPageAnonExclusive(&memory->folio->page);
	KUNIT_EXPECT_EQ(test, nr_wrong(test), 0);
}

static void test_wrong_offset_of_vma(struct kunit *test)
{
	struct test_memory *memory = memory_init(test);
	const pgoff_t pgoff = vma_start_anon_pgoff(memory->vma);

	/* One page is out of reach, the others are led to the wrong place. */
	__vma_set_anon_pgoff(memory->vma, pgoff + 1);
	KUNIT_EXPECT_EQ(test, nr_wrong(test), NR_PAGES);
	__vma_set_anon_pgoff(memory->vma, pgoff);
	KUNIT_EXPECT_EQ(test, nr_wrong(test), 0);
}

static void test_wrong_offset_of_folio(struct kunit *test)
{
	struct test_memory *memory = memory_init(test);

	folio_lock(memory->folio);
	memory->folio->index++;
	KUNIT_EXPECT_EQ(test, nr_wrong(test), 1);
	memory->folio->index--;
	folio_unlock(memory->folio);
	KUNIT_EXPECT_EQ(test, nr_wrong(test), 0);
}

#ifdef CONFIG_MIGRATION
/* The page is locked, and stays where it is. */
static void test_migration_entry(struct kunit *test)
{
	struct test_memory *memory = memory_init(test);
	struct folio *folio = memory->folio;
	struct cow_check check = { .quiet = true };

	/* What is pinned would not be unmapped. */
	folio_get(folio);
	kunit_release_action(test, unpin, folio);
	folio_lock(folio);
	try_to_migrate(folio, 0);
	KUNIT_EXPECT_FALSE(test, folio_mapped(folio));
	KUNIT_EXPECT_EQ(test, cow_check_mm(&check, current->mm), 0);
	KUNIT_EXPECT_EQ(test, check.pages, NR_PAGES - 1);
	KUNIT_EXPECT_EQ(test, check.migrating, 1);
	KUNIT_EXPECT_EQ(test, check.wrong, 0);

	folio->index++;
	KUNIT_EXPECT_EQ(test, cow_check_mm(&check, current->mm), 0);
	KUNIT_EXPECT_EQ(test, check.wrong, 1);
	folio->index--;
	remove_migration_ptes(folio, folio, 0);
	KUNIT_EXPECT_TRUE(test, folio_mapped(folio));
	folio_unlock(folio);
	folio_put(folio);
	KUNIT_EXPECT_EQ(test, nr_wrong(test), 0);
}

/*
 * A write fault may make a page exclusive behind migration's back, which has just seen
 * that it was shared.  If it comes back and can be written to, it has to be exclusive.
 */
static void test_writable_migration_entry(struct kunit *test)
{
	struct test_memory *memory = memory_init(test);
	struct folio *folio = memory->folio;

	folio_get(folio);
	kunit_release_action(test, unpin, folio);
	folio_lock(folio);
	try_to_migrate(folio, TTU_SOLE_MAPPING);
	KUNIT_EXPECT_FALSE(test, folio_mapped(folio));
	remove_migration_ptes(folio, folio, TTU_SOLE_MAPPING);
	KUNIT_EXPECT_TRUE(test, PageAnonExclusive(&folio->page));
	folio_unlock(folio);
	folio_put(folio);
	KUNIT_EXPECT_EQ(test, nr_wrong(test), 0);
}
#endif

#ifdef CONFIG_TRANSPARENT_HUGEPAGE
static void test_huge_page(struct kunit *test)
{
	unsigned long addr = kunit_vm_mmap(test, NULL, 0, 2 * HPAGE_PMD_SIZE,
					   PROT_READ | PROT_WRITE,
					   MAP_ANONYMOUS | MAP_PRIVATE, 0);
	struct cow_check check = { .quiet = true };
	struct folio *folio;
	struct page *page;

	KUNIT_ASSERT_LT(test, addr, TASK_SIZE);
	KUNIT_ASSERT_NE(test, addr, 0);
	addr = ALIGN(addr, HPAGE_PMD_SIZE);
	do_madvise(current->mm, addr, HPAGE_PMD_SIZE, MADV_HUGEPAGE);
	KUNIT_ASSERT_EQ(test, put_user(1, (char __user *)addr), 0);
	KUNIT_ASSERT_EQ(test, pin_user_pages_fast(addr, 1, FOLL_WRITE, &page), 1);
	folio = page_folio(page);
	KUNIT_ASSERT_EQ(test, kunit_add_action_or_reset(test, unpin, folio), 0);
	if (!folio_test_pmd_mappable(folio))
		kunit_skip(test, "no huge page to be had");

	KUNIT_EXPECT_EQ(test, cow_check_mm(&check, current->mm), 0);
	KUNIT_EXPECT_EQ(test, check.pages, 1);
	KUNIT_EXPECT_EQ(test, check.wrong, 0);
	folio_lock(folio);
	folio->index++;
	KUNIT_EXPECT_EQ(test, cow_check_mm(&check, current->mm), 0);
	KUNIT_EXPECT_EQ(test, check.wrong, 1);
	folio->index--;
	folio_unlock(folio);
}
#endif

static void set_context(struct folio *folio, struct cow_context *context)
{
	folio->mapping = (void *)((unsigned long)context | FOLIO_MAPPING_ANON);
}

static void release(void *data)
{
	struct cow_context *context = data;

	cow_context_detach(context);
	cow_context_release(context);
}

/* A context of nobody, in the tree of @parent if there is one */
static struct cow_context *new_context(struct kunit *test, struct cow_context *parent)
{
	struct cow_context *context = cow_context_alloc(current->mm);

	KUNIT_ASSERT_NOT_NULL(test, context);
	KUNIT_ASSERT_EQ(test, kunit_add_action_or_reset(test, release, context), 0);
	if (parent)
		cow_context_fork(context, parent);
	return context;
}

static void test_folio_of_stranger(struct kunit *test)
{
	struct test_memory *memory = memory_init(test);
	struct cow_context *stranger = new_context(test, NULL);
	struct cow_context *child = new_context(test, memory->context);

	/* Others may walk, too, and it is nobody's. */
	cow_context_detach(child);
	folio_lock(memory->folio);
	set_context(memory->folio, stranger);
	KUNIT_EXPECT_EQ(test, nr_wrong(test), 1);
	set_context(memory->folio, child);
	KUNIT_EXPECT_EQ(test, nr_wrong(test), 1);
	set_context(memory->folio, memory->context);
	folio_unlock(memory->folio);
	KUNIT_EXPECT_EQ(test, nr_wrong(test), 0);
}

static void test_context_out_of_place(struct kunit *test)
{
	struct test_memory *memory = memory_init(test);
	struct cow_context *root = new_context(test, NULL);
	struct cow_context *parent, *sibling;

	/* In the list, the one that was linked last comes first. */
	sibling = new_context(test, root);
	parent = new_context(test, root);
	cow_context_fork(memory->context, parent);
	cow_context_detach(root);
	cow_context_detach(sibling);
	cow_context_detach(parent);

	folio_lock(memory->folio);
	set_context(memory->folio, parent);
	KUNIT_EXPECT_EQ(test, nr_wrong(test), 0);

	list_move(&memory->context->tree, &sibling->tree);
	KUNIT_EXPECT_EQ(test, nr_wrong(test), 1);
	list_move(&memory->context->tree, &parent->tree);
	KUNIT_EXPECT_EQ(test, nr_wrong(test), 0);

	set_context(memory->folio, memory->context);
	folio_unlock(memory->folio);
}

static struct kunit_case cow_check_cases[] = {
	KUNIT_CASE(test_nothing_wrong),
	KUNIT_CASE(test_vma_not_in_index),
	KUNIT_CASE(test_moved_vma_not_in_index),
	KUNIT_CASE(test_writable_page_not_exclusive),
	KUNIT_CASE(test_wrong_offset_of_vma),
	KUNIT_CASE(test_wrong_offset_of_folio),
#ifdef CONFIG_MIGRATION
	KUNIT_CASE(test_migration_entry),
	KUNIT_CASE(test_writable_migration_entry),
#endif
#ifdef CONFIG_TRANSPARENT_HUGEPAGE
	KUNIT_CASE(test_huge_page),
#endif
	KUNIT_CASE(test_folio_of_stranger),
	KUNIT_CASE(test_context_out_of_place),
	{}
};

static struct kunit_suite cow_check_suite = {
	.name = "cow_check",
	.test_cases = cow_check_cases,
};

kunit_test_suites(&cow_check_suite);

MODULE_DESCRIPTION("KUnit tests for the check of the anonymous reverse map");
MODULE_LICENSE("GPL");
