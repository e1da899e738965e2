/* SPDX-License-Identifier: GPL-2.0 */
#ifndef __MM_COW_CONTEXT_H
#define __MM_COW_CONTEXT_H

#include <linux/cow_context.h>
#include <linux/list.h>
#include <linux/maple_tree.h>
#include <linux/mm.h>
#include <linux/mmdebug.h>
#include <linux/rbtree.h>
#include <linux/rcupdate.h>
#include <linux/refcount.h>
#include <linux/rwsem.h>
#include <linux/spinlock.h>
#include <linux/types.h>

/* The deepest generation of a fork tree whose contexts own folios. */
#define COW_CONTEXT_MAX_DEPTH	32

/*
 * What is mapped where a moved VMA was has the anonymous page offset of its address
 * plus a multiple of this, so that what is mapped beside it can go on from there.  Few
 * addresses give as much.
 */
#define COW_PLANE	(1UL << ((IS_ENABLED(CONFIG_64BIT) ? 57 : 32) - PAGE_SHIFT))

/* As long as not so many moved VMAs have its offsets, one may have them, too, to merge. */
#define COW_SHARED	4

/**
 * struct cow_moved - a VMA with anonymous page offsets that are not its address
 * @rb: Node in context->moved, by anonymous page offset.
 * @subtree_last: Last page offset below @rb.
 * @vma: The VMA.
 */
struct cow_moved {
	struct rb_node		rb;
	pgoff_t			subtree_last;
	struct vm_area_struct	*vma;
};

/**
 * struct cow_unmapping - the VMAs of a running munmap
 * @vmas: The VMAs, by number and in the order of their addresses.
 * @nr: How many.
 * @start: Address where the range begins.
 * @end: Address behind its end.
 */
struct cow_unmapping {
	struct maple_tree	*vmas;
	unsigned int		nr;
	unsigned long		start, end;
};

/**
 * struct cow_context - what the anonymous reverse map knows of an mm
 * @rwsem: Held for read, it keeps @mm set, and the VMAs in the index and their
 *	   page tables as they are.
 * @mm: The mm, or NULL once it has no page tables left.
 * @hint: The VMA that a walk found last by its address, or NULL, until it leaves
 *	  the index; and COW_HINT_CONTENDED.
 * @moved: The VMAs in the index that are not where their folios' indices say.
 * @moved_first: The lowest anonymous page offset in @moved, or ULONG_MAX.
 * @moved_left: A VMA has left @moved, so that @moved_first may be too low.
 * @unmapping: The VMAs in the index that a munmap has taken out of mm->mm_mt.
 * @tree: Position in the pre-order list of the fork tree, a ring.
 * @depth: Generation in the fork tree.  The root has 0.
 * @root: First context of the fork tree.
 * @parent: The context whose reference this one holds, NULL in the root: that
 *	    of the mm it was forked from, or in very deep trees @owner.
 * @owner: The context for new folios: this one, or in very deep trees an
 *	   ancestor.
 * @refs: One for the mm, one for each context with this @parent,
 *	  one for each pin.
 * @lock: In the root, guards the list and @nr.
 * @nr: In the root, the number of contexts in the list.
 * @gate: In the root, the number of walks that keep forks waiting.
 * @rcu: Delays freeing.  While the object is free, its free pointer.
 *
 * @depth, @root, @parent and @owner are constant from the moment the context is
 * linked (litmus: list-del-publish, mapping-context).
 */
struct cow_context {
	/* One cache line is enough to go here, lock, and find what was found last. */
	struct list_head	tree;
	struct mm_struct	*mm;
	unsigned long		hint;
	pgoff_t			moved_first;
	u64			depth;
	struct rw_semaphore	rwsem;	/* its first two words */

	struct rb_root_cached	moved;
	bool			moved_left;
	const struct cow_unmapping *unmapping;
	struct cow_context	*root;
	struct cow_context	*parent;
	struct cow_context	*owner;
	refcount_t		refs;
	spinlock_t		lock;	/* the list, in the root */
	unsigned int		nr;
	atomic_t		gate;
	struct rcu_head		rcu;
} __aligned(8);			/* folio->migrate_info has three bits more */

/*
 * In context->hint: what changes VMAs had to wait for a walk.  From then on walks
 * lock the VMA that they find, if they can, and not all of the mm.
 */
#define COW_HINT_CONTENDED	1UL

static inline struct vm_area_struct *cow_hint_vma(unsigned long hint)
{
	return (struct vm_area_struct *)(hint & ~COW_HINT_CONTENDED);
}

/**
 * cow_context_get() - Take another reference to a context.
 * @context: A context that the caller knows to be alive.
 */
static inline void cow_context_get(struct cow_context *context)
{
	refcount_inc(&context->refs);
}

/**
 * cow_context_tryget() - Take a reference to a context that may be dying.
 * @context: A context found under RCU.
 *
 * Context: RCU read section, or any other in which @context is not freed.
 * Return: true if the caller has got a reference.
 */
static inline bool cow_context_tryget(struct cow_context *context)
{
	return refcount_inc_not_zero(&context->refs);
}

void cow_context_put(struct cow_context *context);
bool cow_context_inherits(const struct cow_context *context,
			  const struct cow_context *ancestor);
struct cow_context *cow_context_common(struct cow_context *a,
				       struct cow_context *b);
void cow_context_detach(struct cow_context *context);
void mm_leave_cow_context(struct mm_struct *mm);
void cow_context_fork(struct cow_context *child, struct cow_context *parent);

/**
 * struct cow_context_walk - a walk over the live contexts of a subtree
 * @top: Where the walk begins.
 * @pos: Where the walk stands; NULL before and after the walk.  Held for read, or
 *	 @vma is, which keeps @pos as well.
 * @vma: The only VMA at @pos that may map the folio, read-locked; or NULL.
 * @first: First page offset of the folio that the walk is for.
 * @last: Last page offset, below @first if it is for others, too.
 * @try_lock: End the walk at a context that would have to be waited for.
 * @contended: Set if that has happened.
 * @gated: The root, which is pinned, if the walk keeps the forks of its tree waiting.
 * @seen: How many contexts it has come to.
 * @enough: When it has come to more, forks have to wait; 0 at first.
 * @start: When it began.
 *
 * Use DEFINE_COW_CONTEXT_WALK().
 */
struct cow_context_walk {
	struct cow_context	*top;
	struct cow_context	*pos;
	struct vm_area_struct	*vma;
	pgoff_t			first, last;
	struct cow_context	*gated;
	unsigned long		seen;
	unsigned long		enough;
	bool			try_lock;
	bool			contended;
#ifdef CONFIG_DEBUG_COW_CONTEXT
	u64			start;
#endif
};

#define DEFINE_COW_CONTEXT_WALK(name, _top, _try_lock)	\
	struct cow_context_walk name = {			\
		.top = (_top),					\
		.first = ULONG_MAX,				\
		.try_lock = (_try_lock),			\
	}

struct cow_context *cow_context_walk_first(struct cow_context_walk *walk)
	__releases_shared(RCU);
struct cow_context *cow_context_walk_next(struct cow_context_walk *walk);
void cow_context_walk_end(struct cow_context_walk *walk);

/*
 * What happens to a folio so seldom that tests have to see that it did: it is
 * given to the context that all who may map it share, or to the only one that
 * maps it, or has an exclusive migration entry though it was shared.  And a walk
 * holds a VMA in place of the mm.
 */
enum cow_check_event {
	COW_CHECK_WIDENED,
	COW_CHECK_NARROWED,
	COW_CHECK_SOLE,
	COW_CHECK_HELD_VMA,
	COW_CHECK_NR_EVENTS,
};

#ifdef CONFIG_DEBUG_COW_CONTEXT
void cow_check_count(enum cow_check_event event);
void cow_check_waited(u64 start);
void cow_context_walk_begins(struct cow_context_walk *walk);
void cow_context_walk_ends(const struct cow_context_walk *walk);
#else
static inline void cow_check_count(enum cow_check_event event)
{
}

static inline void cow_check_waited(u64 start)
{
}

static inline void cow_context_walk_begins(struct cow_context_walk *walk)
{
}

static inline void cow_context_walk_ends(const struct cow_context_walk *walk)
{
}
#endif

void __cow_context_lock_write(struct cow_context *context);

/**
 * cow_context_lock_write() - Keep walks out of an mm.
 * @context: The context of the mm.
 *
 * Context: mmap_lock held; sleeps until no walk holds the mm.
 */
static inline void cow_context_lock_write(struct cow_context *context)
{
	might_sleep();
	might_lock(&context->rwsem);
	if (unlikely(!down_write_trylock(&context->rwsem)))
		__cow_context_lock_write(context);
}

void cow_moved_update_first(struct cow_context *context);

static inline void cow_context_unlock_write(struct cow_context *context)
{
	if (unlikely(context->moved_left))
		cow_moved_update_first(context);
	up_write(&context->rwsem);
}

/* vma->vm_cow: this and the context, or a struct cow_moved; 0 outside the index */
#define VM_COW_UNMOVED	1UL

static inline bool vma_is_moved(const struct vm_area_struct *vma)
{
	const unsigned long cow = READ_ONCE(vma->vm_cow);

	return cow && !(cow & VM_COW_UNMOVED);
}

void __vma_set_anon(struct vm_area_struct *vma);

/**
 * vma_set_anon() - Note that a VMA is about to get anonymous memory.
 * @vma: The VMA.
 *
 * Context: The VMA lock or the mmap lock is held, for read will do.  Comes
 *	    before the first page table entry for an anonymous folio
 *	    (litmus: retract+word-first).
 */
static inline void vma_set_anon(struct vm_area_struct *vma)
{
	if (unlikely(!READ_ONCE(vma->vm_cow)))
		__vma_set_anon(vma);
}

/* A VMA must have left the index, or its mm the context, before its page tables go. */
static inline void vma_assert_not_in_index(const struct vm_area_struct *vma)
{
#ifdef CONFIG_MMU
	VM_WARN_ON_ONCE(vma->vm_cow && vma->vm_mm->cow_context &&
			vma->vm_mm->cow_context->mm);
#endif
}

int cow_moved_prealloc(const struct vm_area_struct *vma,
		       struct cow_moved **movedp);
void cow_moved_free(struct cow_moved *moved);
int cow_index_make_moved(struct vm_area_struct *vma);
void cow_index_add(struct vm_area_struct *vma, struct cow_moved *moved);
void cow_index_enter(struct vm_area_struct *vma, struct cow_moved *moved);
void cow_index_del(struct vm_area_struct *vma);
void cow_index_pre_update(struct vm_area_struct *vma);
void cow_index_post_update(struct vm_area_struct *vma);
unsigned int cow_index_count(struct cow_context *context, pgoff_t first,
			     unsigned long pages, unsigned int max);
pgoff_t cow_index_new_pgoff(struct cow_context *context, pgoff_t home,
			    unsigned long pages, unsigned int max);

/*
 * By how much the anonymous page offsets of a VMA are above its address because that
 * was taken when it was mapped; 0 if it is somewhere else now.
 */
static inline pgoff_t vma_plane(const struct vm_area_struct *vma)
{
	const pgoff_t delta = vma_start_anon_pgoff(vma) - (vma->vm_start >> PAGE_SHIFT);

	return delta & (COW_PLANE - 1) ? 0 : delta;
}

void cow_context_set_unmapping(struct cow_context *context,
			       const struct cow_unmapping *unmapping);

/**
 * struct cow_vma_iter - the VMAs of an mm that may map a range of page offsets
 * @context: The context of the mm, held for read.
 * @first: First anonymous page offset.
 * @last: Last anonymous page offset.
 * @next: Up to where the VMAs that were not moved have been returned, or 0.
 * @moved: The moved VMA that was returned last.
 *
 * Use DEFINE_COW_VMA_ITER().
 */
struct cow_vma_iter {
	struct cow_context	*context;
	pgoff_t			first, last;
	pgoff_t			next;
	struct cow_moved	*moved;
};

#define DEFINE_COW_VMA_ITER(name, _context, _first, _last)	\
	struct cow_vma_iter name = {				\
		.context = (_context),				\
		.first = (_first),				\
		.last = (_last),				\
	}

struct vm_area_struct *__cow_vma_iter_next(struct cow_vma_iter *iter);

/**
 * cow_vma_iter_next() - The next VMA of an mm that may map a range of offsets.
 * @iter: The iterator.
 *
 * Context: iter->context->rwsem held for read, from before the first call to
 *	    after the last, and with it iter->context->mm seen to be set.
 * Return: A VMA with anonymous memory, of which some is in the range, or NULL,
 *	   after which it must not be called again.  The VMA stays as it is for
 *	   as long as the lock is held.  None of those that the lock protects is
 *	   missed or returned twice.
 */
static inline struct vm_area_struct *
cow_vma_iter_next(struct cow_vma_iter *iter)
{
	const struct cow_context *context = iter->context;
	struct vm_area_struct *vma = cow_hint_vma(READ_ONCE(context->hint));

	lockdep_assert_held_read(&context->rwsem);

	/*
	 * Walks for neighbouring folios find the same VMA.  It is in the index: what
	 * takes it out of that forgets it.
	 */
	if (!iter->next && vma && iter->first >= vma->vm_start >> PAGE_SHIFT &&
	    iter->first < vma->vm_end >> PAGE_SHIFT) {
		VM_WARN_ON_ONCE_VMA(!vma_has_anon(vma) || vma_is_moved(vma), vma);
		iter->next = vma->vm_end >> PAGE_SHIFT;
		return vma;
	}

	if (iter->next > iter->last && iter->last < context->moved_first)
		return NULL;
	return __cow_vma_iter_next(iter);
}

struct folio;
struct rmap_walk_control;

bool rmap_walk_context(struct folio *folio, struct rmap_walk_control *rwc,
		       struct cow_context *context, pgoff_t first,
		       unsigned long nr_pages);

/**
 * struct cow_check - what a check of anonymous memory has seen
 * @mms: Number of mms.
 * @pages: Mappings of pages, huge ones counted once.
 * @swap_cache: Entries of pages in the swap cache.
 * @migrating: Entries of pages that are being migrated.
 * @ksm: Mappings of pages that KSM has merged.
 * @ksm_missed: Those of them that KSM does not find until it has scanned them.
 * @walks: Walks from contexts to an mm that maps folios of theirs.
 * @moved: VMAs whose anonymous page offsets are not their addresses.
 * @planes: Those of them that are where they were mapped, as a moved one had been.
 * @overlaps: With how many other VMAs of its mm one of these shares offsets, at
 *	      most; it makes walks slow, not wrong.
 * @wrong: What was not right.
 * @owners: The depths of the contexts whose folios the mm maps, one bit each.
 * @quiet: Print nothing.
 */
struct cow_check {
	unsigned long	mms;
	unsigned long	pages;
	unsigned long	swap_cache;
	unsigned long	migrating;
	unsigned long	ksm;
	unsigned long	ksm_missed;
	unsigned long	walks;
	unsigned long	moved;
	unsigned long	planes;
	unsigned long	overlaps;
	unsigned long	wrong;
	u64		owners;
	bool		quiet;
};

#ifdef CONFIG_DEBUG_COW_CONTEXT
int cow_check_mm(struct cow_check *check, struct mm_struct *mm);
bool ksm_walk_finds(const struct folio *folio, const struct cow_context *context,
		    pgoff_t pgoff);
#endif

#endif /* __MM_COW_CONTEXT_H */
