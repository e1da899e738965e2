// SPDX-License-Identifier: GPL-2.0
/*
 * Does the reverse map find all anonymous memory that is mapped?
 *
 * A pass goes the other way: through the page tables of each mm.  Whatever maps
 * a folio there, or will, must be found from the folio:
 *
 *  - the folio's context is that of the mm, or of one that it was forked from;
 *  - the index of the mm leads from the folio's page offset to this VMA, and
 *    the VMA to this address;
 *  - a walk from the folio's context comes to the mm.
 *
 * KSM has its own list of where its folios are mapped.  A mapping that comes by fork
 * or from swap is added by the next scan, and never if its VMA is not for KSM, but
 * shares a folio with one that is: a folio cannot be unmapped then.  Those that a scan
 * is to add are counted, and are nothing wrong.
 *
 * Writing to cow_context/check in debugfs starts a pass; it fails with EUCLEAN
 * if anything was wrong, which the log tells.  Reading tells what was looked at,
 * and how long walks and those who waited for them took at most.
 */
#include <linux/atomic.h>
#include <linux/debugfs.h>
#include <linux/hugetlb.h>
#include <linux/ktime.h>
#include <linux/leafops.h>
#include <linux/mm.h>
#include <linux/mmap_lock.h>
#include <linux/pagemap.h>
#include <linux/pagewalk.h>
#include <linux/pid.h>
#include <linux/sched/mm.h>
#include <linux/sched/task.h>
#include <linux/seq_file.h>

#include "cow_context.h"
#include "internal.h"
#include "swap.h"

/* So many complaints of a pass are printed. */
#define COW_CHECK_MAX_PRINT	20

static atomic64_t longest_wait, longest_walk;	/* ns */
static atomic64_t nr_walks, nr_gated;
static atomic64_t nr_events[COW_CHECK_NR_EVENTS];

static void cow_check_took(atomic64_t *longest, u64 start)
{
	const s64 took = ktime_get_ns() - start;
	s64 old = atomic64_read(longest);

	while (took > old && !atomic64_try_cmpxchg(longest, &old, took))
		;
}

/**
 * cow_check_count() - Count what happens seldom.
 * @event: What has happened.
 */
void cow_check_count(enum cow_check_event event)
{
	atomic64_inc(&nr_events[event]);
}

/**
 * cow_check_waited() - Note how long what changes an mm has waited for walks.
 * @start: When it began.
 */
void cow_check_waited(u64 start)
{
	cow_check_took(&longest_wait, start);
}

/**
 * cow_context_walk_begins() - Note when a walk begins.
 * @walk: The walk.
 */
void cow_context_walk_begins(struct cow_context_walk *walk)
{
	walk->start = ktime_get_ns();
}

/**
 * cow_context_walk_ends() - Note how long a walk took, and if forks waited for it.
 * @walk: The walk.
 */
void cow_context_walk_ends(const struct cow_context_walk *walk)
{
	cow_check_took(&longest_walk, walk->start);
	atomic64_inc(&nr_walks);
	if (walk->gated)
		atomic64_inc(&nr_gated);
}

static void __printf(4, 5) cow_check_wrong(struct cow_check *check,
					   const struct mm_struct *mm,
					   unsigned long addr,
					   const char *fmt, ...)
{
	struct va_format vaf = { .fmt = fmt };
	va_list args;

	check->wrong++;
	if (check->quiet || check->wrong > COW_CHECK_MAX_PRINT)
		return;

	va_start(args, fmt);
	vaf.va = &args;
	pr_err("BUG: cow_context: mm %p, address %lx: %pV\n", mm, addr, &vaf);
	va_end(args);
}

static void cow_check_owner(struct cow_check *check, const struct vm_area_struct *vma,
			    unsigned long addr, const struct folio *folio,
			    const struct cow_context *owner)
{
	if (cow_context_inherits(vma->vm_mm->cow_context, owner))
		check->owners |= BIT_ULL(owner->depth);
	else
		cow_check_wrong(check, vma->vm_mm, addr,
				"folio %p belongs to %p, from which it was not forked",
				folio, owner);
}

/* Does the index lead to where the page is, or was before it was swapped out? */
static void cow_check_offset(struct cow_check *check, struct vm_area_struct *vma,
			     unsigned long addr, pgoff_t pgoff)
{
	DEFINE_COW_VMA_ITER(iter, vma->vm_mm->cow_context, pgoff, pgoff);
	struct vm_area_struct *found;

	/* In the trees, whatever a walk has found last. */
	do {
		found = __cow_vma_iter_next(&iter);
	} while (found && found != vma);

	if (!found)
		cow_check_wrong(check, vma->vm_mm, addr,
				"VMA %lx-%lx (word %lx, offset %lx) not found for offset %lx",
				vma->vm_start, vma->vm_end, vma->vm_cow,
				vma_start_anon_pgoff(vma), pgoff);
	else if (vma_anon_address(vma, pgoff, 1) != addr)
		cow_check_wrong(check, vma->vm_mm, addr,
				"found at %lx for offset %lx",
				vma_anon_address(vma, pgoff, 1), pgoff);
}

static void cow_check_ksm(struct cow_check *check, struct vm_area_struct *vma,
			  unsigned long addr, struct folio *folio)
{
	const pgoff_t pgoff = linear_anon_page_index(vma, addr);

	check->ksm++;
	cow_check_offset(check, vma, addr, pgoff);
	if (!(vma->vm_flags & VM_MERGEABLE) || !folio_trylock(folio))
		return;
	if (folio_test_ksm(folio) &&
	    !ksm_walk_finds(folio, vma->vm_mm->cow_context, pgoff))
		check->ksm_missed++;
	folio_unlock(folio);
}

static void cow_check_mapped(struct cow_check *check, struct vm_area_struct *vma,
			     unsigned long addr, struct page *page,
			     unsigned long *counter)
{
	struct folio *folio = page_folio(page);
	const struct cow_context *owner = folio_cow_context(folio);

	if (folio_test_ksm(folio))
		cow_check_ksm(check, vma, addr, folio);
	if (!owner)
		return;
	++*counter;
	cow_check_owner(check, vma, addr, folio, owner);
	cow_check_offset(check, vma, addr, page_pgoff(folio, page));
}

/*
 * A folio of the swap cache comes to belong to whoever maps it, too, if that can
 * be.  A slot that KSM shared may be referred to by anybody, at any address: then
 * it cannot, and a copy is mapped, see ksm_might_need_to_copy().
 */
static void cow_check_swap_folio(struct cow_check *check, struct vm_area_struct *vma,
				 unsigned long addr, pte_t pte,
				 const struct folio *folio, const struct page *page)
{
	if (folio_can_share_anon_rmap(folio, page, vma, addr)) {
		check->swap_cache++;
		if (folio_mapped(folio))
			cow_check_offset(check, vma, addr, page_pgoff(folio, page));
	} else if (!IS_ENABLED(CONFIG_KSM) || pte_swp_exclusive(pte) ||
		   folio_test_large(folio)) {
		cow_check_wrong(check, vma->vm_mm, addr,
				"folio %p, offset %lx, cannot be shared from the swap cache",
				folio, page_pgoff(folio, page));
	}
}

static void cow_check_swap(struct cow_check *check, struct vm_area_struct *vma,
			   unsigned long addr, pte_t pte, softleaf_t entry)
{
	struct folio *folio = swap_cache_get_folio(entry);

	if (!folio)
		return;
	/* Until it is locked it may be about to belong to somebody. */
	if (folio_trylock(folio)) {
		if (folio_matches_swap_entry(folio, entry) &&
		    folio_cow_context(folio))
			cow_check_swap_folio(check, vma, addr, pte, folio,
					     folio_page(folio, swp_offset(entry) -
							       swp_offset(folio->swap)));
		folio_unlock(folio);
	}
	folio_put(folio);
}

static void cow_check_leaf(struct cow_check *check, struct vm_area_struct *vma,
			   unsigned long addr, softleaf_t entry)
{
	if (softleaf_is_migration(entry))
		cow_check_mapped(check, vma, addr, softleaf_to_page(entry),
				 &check->migrating);
	else if (softleaf_is_device_private(entry) ||
		 softleaf_is_device_exclusive(entry))
		cow_check_mapped(check, vma, addr, softleaf_to_page(entry),
				 &check->pages);
}

static bool cow_check_ptes(struct cow_check *check, struct vm_area_struct *vma,
			   pmd_t *pmd, unsigned long addr, unsigned long end)
{
	pte_t *start_pte, *ptep;
	spinlock_t *ptl;	/* of the page table */

	start_pte = pte_offset_map_lock(vma->vm_mm, pmd, addr, &ptl);
	if (!start_pte)
		return false;

	for (ptep = start_pte; addr < end; ptep++, addr += PAGE_SIZE) {
		const pte_t pte = ptep_get(ptep);
		struct page *page;
		softleaf_t entry;

		if (pte_none(pte))
			continue;
		if (pte_present(pte)) {
			page = vm_normal_page(vma, addr, pte);
			if (!page)
				continue;
			cow_check_mapped(check, vma, addr, page, &check->pages);
			if (pte_write(pte) && PageAnonNotKsm(page) &&
			    !PageAnonExclusive(page))
				cow_check_wrong(check, vma->vm_mm, addr,
						"page %p is writable and not exclusive",
						page);
			continue;
		}
		entry = softleaf_from_pte(pte);
		if (softleaf_is_swap(entry))
			cow_check_swap(check, vma, addr, pte, entry);
		else
			cow_check_leaf(check, vma, addr, entry);
	}
	pte_unmap_unlock(start_pte, ptl);
	return true;
}

static void cow_check_huge_pmd(struct cow_check *check, struct vm_area_struct *vma,
			       unsigned long addr, pmd_t pmd)
{
	struct page *page;

	if (pmd_present(pmd)) {
		page = vm_normal_page_pmd(vma, addr, pmd);
		if (page)
			cow_check_mapped(check, vma, addr, page, &check->pages);
	} else {
		cow_check_leaf(check, vma, addr, softleaf_from_pmd(pmd));
	}
}

static int cow_check_pmd(pmd_t *pmd, unsigned long addr, unsigned long end,
			 struct mm_walk *walk)
{
	struct cow_context *context = walk->mm->cow_context;
	spinlock_t *ptl;	/* of the page table */

	down_read(&context->rwsem);
	ptl = pmd_trans_huge_lock(pmd, walk->vma);
	if (ptl) {
		cow_check_huge_pmd(walk->private, walk->vma, addr & PMD_MASK,
				   pmdp_get(pmd));
		spin_unlock(ptl);
	} else if (!cow_check_ptes(walk->private, walk->vma, pmd, addr, end)) {
		walk->action = ACTION_AGAIN;
	}
	up_read(&context->rwsem);
	cond_resched();
	return 0;
}

#ifdef CONFIG_HUGETLB_PAGE
static int cow_check_hugetlb(pte_t *ptep, unsigned long hmask, unsigned long addr,
			     unsigned long end, struct mm_walk *walk)
{
	struct cow_context *context = walk->mm->cow_context;
	struct vm_area_struct *vma = walk->vma;
	struct cow_check *check = walk->private;
	spinlock_t *ptl;	/* of the page table */
	pte_t pte;

	addr &= hmask;
	down_read(&context->rwsem);
	ptl = huge_pte_lock(hstate_vma(vma), walk->mm, ptep);
	pte = huge_ptep_get(walk->mm, addr, ptep);
	if (pte_present(pte))
		cow_check_mapped(check, vma, addr, pte_page(pte), &check->pages);
	else if (!pte_none(pte))
		cow_check_leaf(check, vma, addr, softleaf_from_pte(pte));
	spin_unlock(ptl);
	up_read(&context->rwsem);
	cond_resched();
	return 0;
}
#else
#define cow_check_hugetlb NULL
#endif

/* VM_PFNMAP does not keep a private mapping from having anonymous memory. */
static int cow_check_skips_vma(unsigned long addr, unsigned long end,
			       struct mm_walk *walk)
{
	return !vma_is_cow_mapping(walk->vma);
}

static const struct mm_walk_ops cow_check_ops = {
	.test_walk	= cow_check_skips_vma,
	.pmd_entry	= cow_check_pmd,
	.hugetlb_entry	= cow_check_hugetlb,
	.walk_lock	= PGWALK_RDLOCK,
};

static bool cow_check_visits(struct cow_context *top,
			     const struct cow_context *context)
{
	DEFINE_COW_CONTEXT_WALK(walk, top, false);
	const struct cow_context *pos;

	do {
		pos = cow_context_walk_next(&walk);
	} while (pos && pos != context);
	cow_context_walk_end(&walk);

	return pos;
}

/* Most VMAs share their offsets with no other one of the mm, but see cow_context.rst. */
static void cow_check_overlaps(struct cow_check *check, struct mm_struct *mm)
{
	VMA_ITERATOR(vmi, mm, 0);
	struct cow_context *context = mm->cow_context;
	struct vm_area_struct *vma, *found;

	down_read(&context->rwsem);
	for_each_vma(vmi, vma) {
		DEFINE_COW_VMA_ITER(iter, context, vma_start_anon_pgoff(vma),
				    vma_last_anon_pgoff(vma));
		unsigned long others = 0;

		if (!vma_is_moved(vma))
			continue;
		check->moved++;
		if (vma_plane(vma))
			check->planes++;
		while ((found = cow_vma_iter_next(&iter)))
			others += found != vma;
		check->overlaps = max(check->overlaps, others);
	}
	up_read(&context->rwsem);
}

/**
 * cow_check_mm() - Check the anonymous memory of an mm.
 * @check: What was found until now, which this adds to.
 * @mm: The mm, which has a user.
 *
 * Context: Takes mmap_lock and, under it, one cow_context->rwsem at a time.
 * Return: 0, or -EINTR on a fatal signal.
 */
int cow_check_mm(struct cow_check *check, struct mm_struct *mm)
{
	struct cow_context *context = mm->cow_context, *top;

	if (mmap_read_lock_killable(mm))
		return -EINTR;

	check->mms++;
	cow_check_overlaps(check, mm);
	check->owners = 0;
	walk_page_range(mm, 0, mm->task_size, &cow_check_ops, check);

	for (top = context->owner; top; top = top->parent) {
		if (!(check->owners & BIT_ULL(top->depth)))
			continue;
		check->walks++;
		if (!cow_check_visits(top, context))
			cow_check_wrong(check, mm, 0,
					"not visited by a walk from %p", top);
	}
	mmap_read_unlock(mm);

	return 0;
}

static struct cow_check last_check;
static DEFINE_MUTEX(cow_check_lock);

/* The mm of the next task.  That of several threads is seen more than once. */
static struct mm_struct *cow_check_next_mm(int *nr)
{
	struct task_struct *task;
	struct mm_struct *mm;
	struct pid *pid;

	for (;;) {
		rcu_read_lock();
		pid = find_ge_pid(*nr, &init_pid_ns);
		if (!pid) {
			rcu_read_unlock();
			return NULL;
		}
		*nr = pid_nr(pid) + 1;
		task = get_pid_task(pid, PIDTYPE_PID);
		rcu_read_unlock();
		if (!task)
			continue;

		mm = get_task_mm(task);
		put_task_struct(task);
		if (mm)
			return mm;
	}
}

static int cow_check_all(struct cow_check *check)
{
	struct mm_struct *mm, *last = NULL;
	int nr = 1, err = 0;

	while (!err && (mm = cow_check_next_mm(&nr))) {
		if (mm != last)
			err = cow_check_mm(check, mm);
		if (last)
			mmput(last);
		last = mm;
	}
	if (last)
		mmput(last);
	return err;
}

static ssize_t cow_check_write(struct file *file, const char __user *buf,
			       size_t count, loff_t *pos)
{
	struct cow_check check = {};
	int err;

	err = cow_check_all(&check);
	mutex_lock(&cow_check_lock);
	last_check = check;
	mutex_unlock(&cow_check_lock);

	if (!err && check.wrong)
		err = -EUCLEAN;
	return err ?: count;
}

static int cow_check_show(struct seq_file *seq, void *unused)
{
	struct cow_check check;

	mutex_lock(&cow_check_lock);
	check = last_check;
	mutex_unlock(&cow_check_lock);

	seq_printf(seq, "mms\t\t%lu\n", check.mms);
	seq_printf(seq, "pages\t\t%lu\n", check.pages);
	seq_printf(seq, "swap_cache\t%lu\n", check.swap_cache);
	seq_printf(seq, "migrating\t%lu\n", check.migrating);
	seq_printf(seq, "ksm\t\t%lu\n", check.ksm);
	seq_printf(seq, "ksm_missed\t%lu\n", check.ksm_missed);
	seq_printf(seq, "walks\t\t%lu\n", check.walks);
	seq_printf(seq, "moved\t\t%lu\n", check.moved);
	seq_printf(seq, "planes\t\t%lu\n", check.planes);
	seq_printf(seq, "overlaps\t%lu\n", check.overlaps);
	seq_printf(seq, "wrong\t\t%lu\n", check.wrong);
	seq_printf(seq, "all_walks\t%lld\n", atomic64_read(&nr_walks));
	seq_printf(seq, "gated_walks\t%lld\n", atomic64_read(&nr_gated));
	seq_printf(seq, "widened\t\t%lld\n",
		   atomic64_read(&nr_events[COW_CHECK_WIDENED]));
	seq_printf(seq, "narrowed\t%lld\n",
		   atomic64_read(&nr_events[COW_CHECK_NARROWED]));
	seq_printf(seq, "sole_mappings\t%lld\n",
		   atomic64_read(&nr_events[COW_CHECK_SOLE]));
	seq_printf(seq, "held_vmas\t%lld\n",
		   atomic64_read(&nr_events[COW_CHECK_HELD_VMA]));
	seq_printf(seq, "longest_walk\t%lld ns\n", atomic64_read(&longest_walk));
	seq_printf(seq, "longest_wait\t%lld ns\n", atomic64_read(&longest_wait));
	return 0;
}

DEFINE_SHOW_STORE_ATTRIBUTE(cow_check);

static int __init cow_check_init(void)
{
	struct dentry *dir = debugfs_create_dir("cow_context", NULL);

	debugfs_create_file("check", 0600, dir, NULL, &cow_check_fops);
	return 0;
}
late_initcall(cow_check_init);
