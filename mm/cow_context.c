// SPDX-License-Identifier: GPL-2.0
/*
 * COW contexts: whose anonymous memory is it, and who may have a copy?
 *
 * Each mm has one struct cow_context, from mm_init() on.  fork() makes the
 * child's context a child of the parent's; exec gives an mm without a past.  So
 * the contexts form trees.  An anonymous folio can be mapped only by the mm that
 * first had it and by mms forked from that one, directly or not.  Hence the
 * subtree of the context that it belongs to is where to look for its mappings.
 *
 * The tree.  The contexts of a tree stand in one RCU list, in pre-order: a child
 * is put right behind its parent.  With the depth of each, the subtree of a
 * context is the context and all that follow it while they are deeper.  The list
 * is a ring: its root is not deeper than anything, so that ends any walk.
 *
 * Very deep trees.  A line of processes that fork and exit for ever must not
 * leave a line of dead contexts.  Below COW_CONTEXT_MAX_DEPTH contexts own no
 * folios: a new folio belongs to the ancestor at that depth, which is also what
 * they hold a reference to.  Nobody but KSM refers to them, and they go with their mm.
 *
 * Lifetime.  References are held by the mm, by child contexts and by whoever
 * pins a context.  So while a folio is mapped its context is alive: an mm in the
 * subtree maps it.  A context leaves the list, and is freed by RCU, when its
 * last reference goes.  The mm drops its own when it has no page tables to look
 * at any more: then context->mm is NULL and walks pass over it.
 *
 * Locks.
 *
 *   mmap_lock
 *     VMA lock			by who changes a VMA; walks only try
 *       cow_context->rwsem	held for read: context->mm stays set
 *         page table locks
 *
 *   cow_context->lock (of the root)	the list; innermost
 *
 * A walk holds one rwsem at a time, so fork() must link the child before it
 * copies the first page table entry: then a walk, which goes from parent to
 * child, either finds the child or has been at the parent before the copy
 * (litmus: fork-link-ptl+link-copy).
 */

#include <linux/interval_tree_generic.h>
#include <linux/mm.h>
#include <linux/mmdebug.h>
#include <linux/random.h>
#include <linux/rculist.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/wait_bit.h>

#include "cow_context.h"
#include "internal.h"

/* So many contexts a walk passes over before it lets others have the CPU. */
#define COW_CONTEXT_WALK_BATCH	256

/* So many contexts may be put in front of a walk before forks have to wait. */
#define COW_CONTEXT_WALK_AHEAD	1024

static struct kmem_cache *cow_context_cachep;
static struct kmem_cache *cow_moved_cachep;

static unsigned long cow_unmoved(const struct cow_context *context)
{
	return (unsigned long)context | VM_COW_UNMOVED;
}

static void cow_context_ctor(void *data)
{
	struct cow_context *context = data;

	init_rwsem(&context->rwsem);
	spin_lock_init(&context->lock);
}

/**
 * cow_context_init() - Create the slab cache.
 *
 * Context: Boot, before the first mm_alloc().
 */
void __init cow_context_init(void)
{
	struct kmem_cache_args args = {
		.align = __alignof__(struct cow_context),
		.use_freeptr_offset = true,
		.freeptr_offset = offsetof(struct cow_context, rcu),
		.ctor = cow_context_ctor,
	};

	cow_context_cachep =
		kmem_cache_create("cow_context", sizeof(struct cow_context),
				  &args, SLAB_PANIC | SLAB_ACCOUNT | SLAB_HWCACHE_ALIGN);
	cow_moved_cachep = KMEM_CACHE(cow_moved, SLAB_PANIC | SLAB_ACCOUNT);
}

/**
 * cow_context_alloc() - Make a context for a new mm.
 * @mm: The mm.  It is not looked at.
 *
 * Context: May sleep, and enter reclaim.
 * Return: A context that is the root of a tree of its own, with one reference that
 *	   belongs to @mm, or NULL if there is no memory.
 */
struct cow_context *cow_context_alloc(struct mm_struct *mm)
{
	struct cow_context *context;

	context = kmem_cache_alloc(cow_context_cachep, GFP_KERNEL_ACCOUNT);
	if (!context)
		return NULL;

	context->mm = mm;
	context->hint = 0;
	context->moved = RB_ROOT_CACHED;
	context->moved_first = ULONG_MAX;
	context->moved_left = false;
	context->unmapping = NULL;
	/* Not in the constructor: a context that left its list keeps ->next. */
	INIT_LIST_HEAD(&context->tree);
	context->depth = 0;
	context->root = context;
	context->parent = NULL;
	context->owner = context;
	context->nr = 1;
	atomic_set(&context->gate, 0);
	refcount_set(&context->refs, 1);
	return context;
}

/**
 * cow_context_put() - Drop a reference to a context.
 * @context: The context, or NULL.
 *
 * With the last one the context leaves its tree and drops the reference to its
 * parent; what is left of a dead line goes with its last descendant.
 *
 * Context: Does not sleep (but for spinlocks of PREEMPT_RT); may be called with
 *	    preemption disabled, not from interrupts.
 */
void cow_context_put(struct cow_context *context)
{
	while (context && refcount_dec_and_test(&context->refs)) {
		struct cow_context *root = context->root;
		struct cow_context *parent = context->parent;

		/* A tree of one has no list, and nobody to guard it from. */
		if (parent) {
			spin_lock(&root->lock);
			list_del_rcu(&context->tree);
			WRITE_ONCE(root->nr, root->nr - 1);
			spin_unlock(&root->lock);
		}

		kfree_rcu(context, rcu);
		context = parent;
	}
}

/**
 * cow_context_release() - Drop the reference of an mm that never had a user.
 * @context: The context of an mm that is about to be freed, or NULL if it has been
 *	     through mm_leave_cow_context().
 *
 * Nothing can refer to such an mm or to its context.
 *
 * Context: As cow_context_put().
 */
void cow_context_release(struct cow_context *context)
{
	VM_WARN_ON_ONCE(context && context->mm &&
			refcount_read(&context->refs) != 1);
	cow_context_put(context);
}

/**
 * __cow_context_lock_write() - Wait for walks that hold an mm.
 * @context: The context of the mm.
 *
 * Context: As cow_context_lock_write().
 */
void __cow_context_lock_write(struct cow_context *context)
{
	const u64 start = IS_ENABLED(CONFIG_DEBUG_COW_CONTEXT) ? ktime_get_ns() : 0;

	down_write(&context->rwsem);
	if (IS_ENABLED(CONFIG_PER_VMA_LOCK))
		WRITE_ONCE(context->hint, context->hint | COW_HINT_CONTENDED);
	cow_check_waited(start);
}

/**
 * cow_context_inherits() - May an mm map the folios of a context?
 * @context: The context of the mm.
 * @ancestor: The context of a folio.  It is not looked at, and may be freed.
 *
 * An address that was used again for an ancestor of @context is no trouble: then
 * the folio belongs to that ancestor.
 *
 * Return: true if @ancestor is where the new folios of @context go, or would have
 *	   gone in an mm that it was forked from.
 */
bool cow_context_inherits(const struct cow_context *context,
			  const struct cow_context *ancestor)
{
	for (context = context->owner; context; context = context->parent)
		if (context == ancestor)
			return true;
	return false;
}

/**
 * cow_context_common() - The nearest context that two are forked from.
 * @a: A context that owns folios.
 * @b: Another.
 *
 * Context: Neither is freed: by a reference, or under RCU by one that somebody
 *	    had in this section.
 * Return: The context, which may be @a or @b; or NULL if they are of two trees.
 */
struct cow_context *cow_context_common(struct cow_context *a,
				       struct cow_context *b)
{
	VM_WARN_ON_ONCE(a->owner != a || b->owner != b);

	if (a->root != b->root)
		return NULL;
	while (a != b) {
		if (a->depth > b->depth)
			a = a->parent;
		else
			b = b->parent;
	}
	return a;
}

/**
 * cow_context_detach() - Take the mm out of its context.
 * @context: The context of an mm that has just unmapped all it had.
 *
 * Called between unmapping and freeing page tables.  Earlier, a walk would miss
 * entries that still are there; later, it would look at freed page tables.  A
 * second call does nothing.
 *
 * Context: The last user of the mm, with mmap_lock held for write, and all VMAs
 *	    write-locked if the context is contended.  Takes context->rwsem for
 *	    write: sleeps until no walk looks into the mm.
 */
void cow_context_detach(struct cow_context *context)
{
	struct cow_moved *moved, *next;

	/* Nobody else writes it. */
	if (!context->mm)
		return;

	/* Not as contended: no walk shall begin to lock VMAs now. */
	down_write(&context->rwsem);
	WRITE_ONCE(context->hint, 0);
	/*
	 * Who sees NULL without taking the lock must also see the page tables
	 * empty: down_write() does not order them before the store
	 * (litmus: detach-empty+release-acquire).
	 */
	smp_store_release(&context->mm, NULL);
	cow_context_unlock_write(context);

	/*
	 * Nobody looks at the index of a context without mm
	 * (litmus: detach-moved+rwsem).
	 */
	rbtree_postorder_for_each_entry_safe(moved, next,
					     &context->moved.rb_root, rb)
		cow_moved_free(moved);
}

/* Walks that hold a VMA, and nothing else, leave it; and none gets another one. */
static void cow_context_lock_vmas(struct mm_struct *mm)
{
	VMA_ITERATOR(vmi, mm, 0);
	struct vm_area_struct *vma;

	if (likely(!(READ_ONCE(mm->cow_context->hint) & COW_HINT_CONTENDED)))
		return;

	/* In a fork that has failed the tree may have VMAs of the parent. */
	for_each_vma(vmi, vma)
		if (vma->vm_mm == mm)
			vma_start_write(vma);
}

/**
 * mm_leave_cow_context() - Take an mm out of its context, and drop its reference.
 * @mm: An mm that has just unmapped all it had.
 *
 * The mm_struct may stay for as long as somebody keeps a reference to it, say by
 * an open /proc/PID/mem.  The context does not: it leaves the list if it has
 * no descendants, and no walk has to step over it.
 *
 * Context: As cow_context_detach().
 */
void mm_leave_cow_context(struct mm_struct *mm)
{
	struct cow_context *context = mm->cow_context;

	mmap_assert_write_locked(mm);
	if (!context)
		return;

	cow_context_lock_vmas(mm);
	cow_context_detach(context);
	mm->cow_context = NULL;
	cow_context_put(context);
}

/**
 * cow_context_fork() - Link the context of a forked mm to that of its parent.
 * @child: The context of the new mm, from cow_context_alloc().
 * @parent: The context of the mm that is being forked.
 *
 * Below COW_CONTEXT_MAX_DEPTH the child owns no folios and refers to its owner
 * only; its place in the list and its depth are the same as above it.  A context
 * that owns folios thus is in the list for as long as there is a descendant, and
 * as what follows its subtree is not deeper than it (a sibling, or a sibling of
 * an ancestor), the end of its subtree is found although contexts below the
 * limit leave the list before those forked from them.  A walk from one of these,
 * which KSM has pinned, may see more than its own subtree: what was forked from a
 * sibling that has left.
 *
 * Context: Both mmap_locks held for write; no page table entry has been copied
 *	    yet.
 */
void cow_context_fork(struct cow_context *child, struct cow_context *parent)
{
	struct cow_context *root = parent->root;

	VM_WARN_ON_ONCE(!parent->mm || !child->mm);
	VM_WARN_ON_ONCE(!list_empty(&child->tree));

	child->root = root;
	child->depth = parent->depth + 1;
	if (child->depth <= COW_CONTEXT_MAX_DEPTH) {
		child->parent = parent;
	} else {
		child->owner = parent->owner;
		child->parent = parent->owner;
	}
	cow_context_get(child->parent);

	spin_lock(&root->lock);
	list_add_rcu(&child->tree, &parent->tree);
	WRITE_ONCE(root->nr, root->nr + 1);
	spin_unlock(&root->lock);
}

/**
 * cow_context_wait_for_walks() - Let a walk end that forks keep ahead of.
 * @context: The context of an mm that is about to be forked.
 *
 * Whatever is forked from an mm that a walk has not come to yet comes to stand
 * in front of the walk.  A storm of forks could do that faster than the walk
 * goes on.  So when it has seen more contexts than there were, and some, it
 * closes the gate of the tree, and is left with those forks that are through.
 *
 * Context: May sleep.  No lock is held.
 * Return: 0, or -ERESTARTSYS on a fatal signal.
 */
int cow_context_wait_for_walks(struct cow_context *context)
{
	struct cow_context *root = context->root;

	return wait_var_event_killable(&root->gate, !atomic_read(&root->gate));
}

static void cow_context_open_gate(struct cow_context_walk *walk)
{
	struct cow_context *root = walk->gated;

	if (likely(!root))
		return;

	walk->gated = NULL;
	/* A full barrier: no fork sleeps for ever (litmus: gate-wake+full). */
	if (atomic_dec_and_test(&root->gate))
		wake_up_var(&root->gate);
	cow_context_put(root);
}

/*
 * Every so many contexts: let others have the CPU, and have forks wait if the walk
 * has come to more than there were after the first of these times, and some.
 */
static noinline void cow_context_walk_batch(struct cow_context_walk *walk,
					    struct cow_context *context)
	__must_hold_shared(RCU)
{
	struct cow_context *root = walk->top->root;

	if (!walk->enough)
		walk->enough = walk->seen + READ_ONCE(root->nr) + COW_CONTEXT_WALK_AHEAD;

	if (walk->seen > walk->enough && !walk->gated && cow_context_tryget(root)) {
		atomic_inc(&root->gate);
		walk->gated = root;
	}

	/*
	 * One that is being freed cannot be kept.  The others have the CPU some
	 * contexts later then: only what was there when this RCU read section began
	 * can be in that state.
	 */
	if (cow_context_tryget(context)) {
		rcu_read_unlock();
		cond_resched();
		rcu_read_lock();
		cow_context_put(context);
	}
}

/* The context behind @context in the subtree of @top, or NULL at its end. */
static struct cow_context *cow_context_step(const struct cow_context *top,
					    const struct cow_context *context)
{
	struct cow_context *next;

	RCU_LOCKDEP_WARN(!rcu_read_lock_held(), "step outside RCU");

	/*
	 * The walk may have read, without a lock, that an entry was gone from
	 * @context, or that its mm was, or its last reference.  Then it has to
	 * see any child that the entry was copied to before.  Pairs with
	 * unlocking root->lock in cow_context_fork() and then locking whatever
	 * the entry is cleared under: that orders the link before the entry
	 * (litmus: fork-link+locks, fork-chain+rmb, exit-fork+rmb,
	 * tryget-fail+rmb).
	 */
	smp_rmb();
	next = list_entry_rcu(context->tree.next, struct cow_context, tree);

	return next->depth > top->depth ? next : NULL;
}

/*
 * Read-lock a VMA that a walk has found, if nothing else in the mm can map the
 * folio.  While it is held it is in the index of @context, as its word says then, and
 * its entries do not move: whatever does that has it write-locked.  So nothing comes
 * to be in context->moved that has had its entries.  And the mm does not leave.
 */
static struct vm_area_struct *
cow_context_lock_vma(const struct cow_context_walk *walk,
		     const struct cow_context *context,
		     struct vm_area_struct *vma)
{
	if (!vma || !vma_start_read_rcu(vma))
		return NULL;

	if (READ_ONCE(vma->vm_cow) == cow_unmoved(context) &&
	    walk->first >= vma->vm_start >> PAGE_SHIFT &&
	    walk->last < vma->vm_end >> PAGE_SHIFT &&
	    walk->last < READ_ONCE(context->moved_first)) {
		cow_check_count(COW_CHECK_HELD_VMA);
		return vma;
	}

	vma_end_read_rcu(vma);
	return NULL;
}

/* Hold the VMA where the folio may be, in place of the mm. */
static noinline void cow_context_hand_over(struct cow_context_walk *walk,
					   struct cow_context *context)
{
	DEFINE_COW_VMA_ITER(iter, context, walk->first, walk->last);
	struct vm_area_struct *vma = cow_vma_iter_next(&iter);

	rcu_read_lock();
	walk->vma = cow_context_lock_vma(walk, context, vma);
	if (walk->vma)
		up_read(&context->rwsem);
	rcu_read_unlock();
}

/* Go to @context, or the next live one behind it, in an RCU read section that ends. */
static __always_inline struct cow_context *
__cow_context_walk(struct cow_context_walk *walk, struct cow_context *context)
	__releases_shared(RCU)
{
	const struct cow_context *top = walk->top;
	unsigned long hint;
	bool hold_vma;

	for (; context; context = cow_context_step(top, context)) {
		if (unlikely(!(++walk->seen % COW_CONTEXT_WALK_BATCH)))
			cow_context_walk_batch(walk, context);

		hint = READ_ONCE(context->hint);
		hold_vma = (hint & COW_HINT_CONTENDED) && walk->first <= walk->last;
		if (unlikely(hold_vma)) {
			walk->vma = cow_context_lock_vma(walk, context,
							 cow_hint_vma(hint));
			if (walk->vma) {
				rcu_read_unlock();
				walk->pos = context;
				return context;
			}
		}

		/*
		 * Pairs with cow_context_detach()
		 * (litmus: detach-empty+release-acquire).
		 */
		if (!smp_load_acquire(&context->mm))
			continue;

		if (down_read_trylock(&context->rwsem)) {
			/*
			 * Detached in between, it may be freed after a grace
			 * period (litmus: detach-tables+recheck, walk-end+rcu).
			 */
			if (!context->mm) {
				up_read(&context->rwsem);
				continue;
			}
			rcu_read_unlock();
			goto found;
		}

		if (walk->try_lock) {
			walk->contended = true;
			break;
		}

		if (!cow_context_tryget(context))
			continue;
		rcu_read_unlock();

		down_read(&context->rwsem);
		if (context->mm) {
			/* Not the last reference: the mm has one. */
			cow_context_put(context);
			goto found;
		}

		rcu_read_lock();
		up_read(&context->rwsem);
		cow_context_put(context);
	}
	rcu_read_unlock();

	cow_context_walk_ends(walk);
	cow_context_open_gate(walk);
	walk->pos = NULL;
	return NULL;

found:
	if (unlikely(hold_vma))
		cow_context_hand_over(walk, context);
	walk->pos = context;
	return context;
}

static void cow_context_walk_unlock(struct cow_context_walk *walk,
				    struct cow_context *context)
{
	RCU_LOCKDEP_WARN(!rcu_read_lock_held(), "nothing keeps the context");

	if (unlikely(walk->vma)) {
		vma_end_read_rcu(walk->vma);
		walk->vma = NULL;
	} else {
		lockdep_assert_held_read(&context->rwsem);
		up_read(&context->rwsem);
	}
}

/**
 * cow_context_walk_first() - Begin a walk.
 * @walk: The walk.
 *
 * Nobody has to keep @walk->top, unless it is below COW_CONTEXT_MAX_DEPTH.  Each RCU
 * read section of the walk but the first begins with a context of the subtree that
 * has its mm, or to which the walk has a reference; and that one keeps @walk->top, or
 * has until then (litmus: pin-mapped+rcu, context-free+two-removed).
 *
 * Context: In an RCU read section, which it ends, and in which @walk->top was alive.
 *	    Else as cow_context_walk_next().
 * Return: As cow_context_walk_next().
 */
struct cow_context *cow_context_walk_first(struct cow_context_walk *walk)
	__releases_shared(RCU)
{
	RCU_LOCKDEP_WARN(!rcu_read_lock_held(), "walk begins outside RCU");

	walk->seen = 0;
	walk->enough = 0;
	cow_context_walk_begins(walk);
	return __cow_context_walk(walk, walk->top);
}

/**
 * cow_context_walk_next() - Go to the next live context of a subtree.
 * @walk: The walk.
 *
 * The subtree is that of @walk->top, itself included; contexts come in list
 * order, parents before their children.  A context is live while it has its mm.
 * The one returned is held for read, so that it stays live, until the next call
 * of this function or of cow_context_walk_end().  If it is contended, and only
 * @walk->vma can have the pages that the walk is for, that is held in its place.
 *
 * A context that is live all the time is returned if it was linked before the
 * walk began, or before the walk left the context it was forked from.  One that
 * is linked later, or dies in between, may or may not be.
 *
 * What follows a context in the list is read afresh whenever the walk could
 * have waited there: while it stands on a context that it holds for read or has
 * a reference to, which cannot leave the list.  Otherwise it stays in the same
 * RCU read section, and there it may stand on a context that has left the list,
 * with a pointer to what followed when it left, which is not freed yet (litmus:
 * context-free+two-removed).  That leads past contexts that were put in later at
 * that very place.  They are not children of the one that left, which has no mm
 * to fork, so they are the first children of contexts that the walk has been to
 * already; and if one of them had been linked before the walk left its parent,
 * the walk would have come to it and not past it.
 *
 * If the walk has not begun, it does, and the caller keeps @walk->top alive.
 *
 * Context: May sleep.  No cow_context->rwsem may be held but that of
 *	    @walk->pos.  Nor may an outer RCU read section be.
 * Return: The context, with its rwsem or @walk->vma held for read; or NULL with
 *	   no lock held, at the end of the subtree or, with @walk->try_lock, where
 *	   a context was locked, which sets @walk->contended.
 */
struct cow_context *cow_context_walk_next(struct cow_context_walk *walk)
{
	struct cow_context *context = walk->pos;

	/* Mms that have nothing there are many, and looked at quickly. */
	cond_resched();

	rcu_read_lock();
	if (!context) {
		VM_WARN_ON_ONCE(!refcount_read(&walk->top->refs));
		return cow_context_walk_first(walk);
	}

	cow_context_walk_unlock(walk, context);
	return __cow_context_walk(walk, cow_context_step(walk->top, context));
}

/**
 * cow_context_walk_end() - End a walk, wherever it stands.
 * @walk: The walk.
 *
 * Need not be called when cow_context_walk_next() has returned NULL.
 *
 * Context: Process context.
 */
void cow_context_walk_end(struct cow_context_walk *walk)
{
	struct cow_context *context = walk->pos;

	if (!context)
		return;

	/*
	 * As soon as the count of the rwsem is down, the mm may go and with it
	 * the last reference; but up_read() may still have waiters to wake
	 * (litmus: walk-end+rcu).
	 */
	rcu_read_lock();
	cow_context_walk_unlock(walk, context);
	rcu_read_unlock();
	cow_context_walk_ends(walk);
	cow_context_open_gate(walk);
	walk->pos = NULL;
}

static pgoff_t cow_moved_first(struct cow_moved *moved)
{
	return vma_start_anon_pgoff(moved->vma);
}

static pgoff_t cow_moved_last(struct cow_moved *moved)
{
	return vma_last_anon_pgoff(moved->vma);
}

INTERVAL_TREE_DEFINE(struct cow_moved, rb, pgoff_t, subtree_last,
		     cow_moved_first, cow_moved_last, static, cow_moved_tree)

/*
 * Walks look at the lowest offset without the lock.  It is never too high: what is
 * about to change has left the tree, and mostly comes back before the lock is released.
 */
static void cow_moved_insert(struct cow_context *context, struct cow_moved *moved)
{
	cow_moved_tree_insert(moved, &context->moved);
	WRITE_ONCE(context->moved_first,
		   min(context->moved_first, cow_moved_first(moved)));
}

static void cow_moved_remove(struct cow_context *context, struct cow_moved *moved)
{
	cow_moved_tree_remove(moved, &context->moved);
	context->moved_left = true;
}

/**
 * cow_moved_update_first() - Find the lowest offset of what is moved.
 * @context: The context, which nothing is about to come back to.
 *
 * Context: context->rwsem held for write.
 */
void cow_moved_update_first(struct cow_context *context)
{
	struct rb_node *leftmost = rb_first_cached(&context->moved);

	lockdep_assert_held_write(&context->rwsem);
	context->moved_left = false;
	WRITE_ONCE(context->moved_first, leftmost ?
		   cow_moved_first(rb_entry(leftmost, struct cow_moved, rb)) : ULONG_MAX);
}

static struct cow_moved *vma_moved(const struct vm_area_struct *vma)
{
	return vma_is_moved(vma) ? (struct cow_moved *)vma->vm_cow : NULL;
}

/* Are the VMA's folios, if it has any, where their indices say? */
static bool vma_anon_at_home(const struct vm_area_struct *vma)
{
	return vma_start_anon_pgoff(vma) == vma->vm_start >> PAGE_SHIFT;
}

/**
 * __vma_set_anon() - Set the word of a VMA that is about to get its first folio.
 * @vma: The VMA.
 *
 * The word is there before the page table entry is.  Nothing orders a walk
 * behind that which finds the folio mapped at once, without a lock in between
 * (litmus: first-touch+as-coded, first-touch-seen+pfn).  It may miss the entry,
 * as it may come before it; then the folio stays mapped.  Who restores entries
 * has found them before (litmus: first-touch+restore).
 *
 * Context: As vma_set_anon().  Faults in other threads may do the same.
 */
void __vma_set_anon(struct vm_area_struct *vma)
{
	vma_assert_stabilised(vma);
	VM_WARN_ON_ONCE_VMA(!vma_anon_at_home(vma), vma);
	VM_WARN_ON_ONCE_VMA(!vma_is_cow_mapping(vma), vma);
	VM_WARN_ON_ONCE_VMA(!vma->vm_mm->cow_context, vma);

	cmpxchg(&vma->vm_cow, 0, cow_unmoved(vma->vm_mm->cow_context));
}

/**
 * cow_moved_prealloc() - Get what a VMA will need in the index.
 * @vma: A VMA that can have anonymous memory, with its range and offsets.
 * @movedp: Where to store it: NULL if nothing is needed.
 *
 * Context: May sleep, and enter reclaim.
 * Return: 0 or -ENOMEM.
 */
int cow_moved_prealloc(const struct vm_area_struct *vma,
		       struct cow_moved **movedp)
{
	*movedp = NULL;
	if (vma_anon_at_home(vma))
		return 0;

	*movedp = kmem_cache_alloc(cow_moved_cachep, GFP_KERNEL);
	return *movedp ? 0 : -ENOMEM;
}

/**
 * cow_moved_free() - Free what cow_moved_prealloc() got and nobody needed.
 * @moved: It, or NULL.
 *
 * Context: Any.
 */
void cow_moved_free(struct cow_moved *moved)
{
	if (moved)
		kmem_cache_free(cow_moved_cachep, moved);
}

/**
 * cow_index_add() - Put a VMA in the index of its mm's context.
 * @vma: A VMA that is not in the index.  It has no page table entry yet, or
 *	 context->rwsem has been held since its range was in the index.
 * @moved: What cow_moved_prealloc() has got for it.
 *
 * Context: mmap_lock held for write, and context->rwsem if there is a @moved or
 *	    the VMA can have page table entries.
 */
void cow_index_add(struct vm_area_struct *vma, struct cow_moved *moved)
{
	struct cow_context *context = vma->vm_mm->cow_context;

	mmap_assert_write_locked(vma->vm_mm);
	VM_WARN_ON_ONCE_VMA(vma->vm_cow, vma);

	if (!moved) {
		VM_WARN_ON_ONCE_VMA(!vma_anon_at_home(vma), vma);
		/*
		 * A walk that finds the word must find the rest of the VMA
		 * (litmus: index-add+release-acquire).
		 */
		smp_store_release(&vma->vm_cow, cow_unmoved(context));
		return;
	}

	lockdep_assert_held_write(&context->rwsem);
	moved->vma = vma;
	cow_moved_insert(context, moved);
	WRITE_ONCE(vma->vm_cow, (unsigned long)moved);
}

/**
 * cow_index_enter() - Put a new VMA in the index of its mm's context.
 * @vma: A VMA that is in mm->mm_mt already and has no page table entry yet.
 * @moved: What cow_moved_prealloc() has got for it.
 *
 * Context: mmap_lock held for write.  Takes context->rwsem if it needs to.
 */
void cow_index_enter(struct vm_area_struct *vma, struct cow_moved *moved)
{
	struct cow_context *context = vma->vm_mm->cow_context;

	if (!moved) {
		cow_index_add(vma, NULL);
		return;
	}

	cow_context_lock_write(context);
	cow_index_add(vma, moved);
	cow_context_unlock_write(context);
}

/**
 * cow_index_del() - Take a VMA out of the index, if it is there.
 * @vma: A VMA that maps no anonymous folio any more, or whose range is in the
 *	 index again before context->rwsem is released.
 *
 * Context: context->rwsem held for write, and mmap_lock at least for read.
 */
void cow_index_del(struct vm_area_struct *vma)
{
	struct cow_context *context = vma->vm_mm->cow_context;
	struct cow_moved *moved = vma_moved(vma);

	lockdep_assert_held_write(&context->rwsem);
	if (cow_hint_vma(context->hint) == vma)
		WRITE_ONCE(context->hint, context->hint & COW_HINT_CONTENDED);
	WRITE_ONCE(vma->vm_cow, 0);
	if (moved) {
		cow_moved_remove(context, moved);
		cow_moved_free(moved);
	}
}

/**
 * cow_index_make_moved() - Prepare a VMA for offsets that differ from its address.
 * @vma: A VMA.
 *
 * Elsewhere such a VMA has no page table entry.  Only exec moves one in place.
 *
 * Context: mmap_lock held for write.  Takes context->rwsem.
 * Return: 0 or -ENOMEM.
 */
int cow_index_make_moved(struct vm_area_struct *vma)
{
	struct cow_context *context = vma->vm_mm->cow_context;
	struct cow_moved *moved;

	vma_assert_write_locked(vma);
	if (vma_is_moved(vma))
		return 0;

	moved = kmem_cache_alloc(cow_moved_cachep, GFP_KERNEL);
	if (!moved)
		return -ENOMEM;

	cow_context_lock_write(context);
	cow_index_del(vma);
	cow_index_add(vma, moved);
	cow_context_unlock_write(context);
	return 0;
}

/**
 * cow_index_pre_update() - Begin to change the range or offsets of a VMA.
 * @vma: The VMA, which need not be in the index.
 *
 * Context: context->rwsem held for write until cow_index_post_update().
 */
void cow_index_pre_update(struct vm_area_struct *vma)
{
	struct cow_context *context = vma->vm_mm->cow_context;
	struct cow_moved *moved = vma_moved(vma);

	lockdep_assert_held_write(&context->rwsem);
	if (moved)
		cow_moved_remove(context, moved);
}

/**
 * cow_index_post_update() - End what cow_index_pre_update() has begun.
 * @vma: The VMA.
 *
 * Context: context->rwsem held for write.
 */
void cow_index_post_update(struct vm_area_struct *vma)
{
	struct cow_context *context = vma->vm_mm->cow_context;
	struct cow_moved *moved = vma_moved(vma);

	lockdep_assert_held_write(&context->rwsem);
	if (moved)
		cow_moved_insert(context, moved);
	else
		VM_WARN_ON_ONCE_VMA(vma->vm_cow && !vma_anon_at_home(vma), vma);
}

/**
 * cow_index_count() - How many moved VMAs have some of these offsets?
 * @context: The context of the mm.
 * @first: First anonymous page offset.
 * @pages: How many.
 * @max: Where to stop.
 *
 * Context: mmap_lock held for write.
 * Return: Their number, or @max if there are more, or if this is no range.
 */
unsigned int cow_index_count(struct cow_context *context, pgoff_t first,
			     unsigned long pages, unsigned int max)
{
	const pgoff_t last = first + pages - 1;
	struct cow_moved *moved;
	unsigned int nr = 0;

	mmap_assert_write_locked(context->mm);
	if (last < first)
		return max;

	for (moved = cow_moved_tree_iter_first(&context->moved, first, last);
	     moved && nr < max;
	     moved = cow_moved_tree_iter_next(moved, first, last))
		nr++;
	return nr;
}

/**
 * cow_index_new_pgoff() - Choose the offsets of a VMA without anonymous memory.
 * @context: The context of the mm.
 * @home: The offset that its address gives.
 * @pages: How many it needs.
 * @max: So many moved VMAs must not have some of the offsets at @home.
 *
 * Two VMAs with the same offsets would do no harm but that each walk for a folio
 * of one looks into the other.
 *
 * Context: mmap_lock held for write.
 * Return: @home, if not as many as @max moved VMAs have some of those offsets, else
 *	   @home in a plane where none has.  If that is not found soon, in any plane.
 */
pgoff_t cow_index_new_pgoff(struct cow_context *context, pgoff_t home,
			    unsigned long pages, unsigned int max)
{
	/* Not the highest: an offset that is added to must not wrap. */
	const pgoff_t planes = ULONG_MAX / COW_PLANE;
	const struct rb_node *top = context->moved.rb_root.rb_node;
	pgoff_t plane;

	if (!top || likely(cow_index_count(context, home, pages, max) < max))
		return home;

	/* It is the highest that is in use, or the next one, unless there is none. */
	plane = rb_entry(top, struct cow_moved, rb)->subtree_last / COW_PLANE;
	for (int i = 0; i < 64; i++) {
		const pgoff_t pgoff = home + (plane + i) % planes * COW_PLANE;

		if (!cow_index_count(context, pgoff, pages, 1))
			return pgoff;
	}
	return home + get_random_u32_below(planes) * COW_PLANE;
}

/**
 * cow_context_set_unmapping() - Publish the VMAs of a munmap, or withdraw them.
 * @context: The context of the mm.
 * @unmapping: The VMAs, which are in mm->mm_mt still or again; or NULL.
 *
 * One at a time: the next munmap needs the mmap_lock for write.
 *
 * Context: context->rwsem held for write.
 */
void cow_context_set_unmapping(struct cow_context *context,
			       const struct cow_unmapping *unmapping)
{
	lockdep_assert_held_write(&context->rwsem);
	VM_WARN_ON_ONCE(unmapping && context->unmapping);
	context->unmapping = unmapping;
}

/* The first VMA of a munmap that ends behind @addr. */
static struct vm_area_struct *
cow_unmapping_find(const struct cow_unmapping *unmapping, unsigned long addr)
{
	struct vm_area_struct *vma, *found = NULL;
	unsigned int low = 0, high = unmapping->nr;

	while (low < high) {
		const unsigned int middle = low + (high - low) / 2;

		vma = mtree_load(unmapping->vmas, middle);
		if (vma->vm_end > addr) {
			found = vma;
			high = middle;
		} else {
			low = middle + 1;
		}
	}
	return found;
}

/* Is it a VMA that was not moved, and around @addr? */
static bool cow_vma_is_unmoved(const struct vm_area_struct *vma,
			       const struct cow_context *context,
			       unsigned long addr)
{
	/*
	 * Pairs with cow_index_add() and __vma_set_anon() (litmus:
	 * index-add+release-acquire, first-touch-range+cmpxchg).
	 */
	return vma && smp_load_acquire(&vma->vm_cow) == cow_unmoved(context) &&
	       vma->vm_start <= addr && vma->vm_end > addr;
}

/*
 * The next VMA that was not moved.
 *
 * What mm->mm_mt or an old node of it points to may be a VMA without anonymous
 * memory, and so may be freed and used again at any time, even for another mm.
 * The word tells: it names the context, and where it does, the VMA is in the
 * index of this one and stays as it is (litmus: vma-reuse+rwsem).  The range of
 * the VMA is looked at after that: if it is not where the tree has it, it was
 * freed and used again in this mm, elsewhere, and what is between here and there
 * has not been looked at.  A VMA that was in the index all the time is not
 * missed, as each version of the tree has it.
 */
static struct vm_area_struct *cow_vma_iter_unmoved(struct cow_vma_iter *iter)
{
	struct cow_context *context = iter->context;
	const struct cow_unmapping *unmapping = context->unmapping;
	/* Page offsets of moved VMAs may be beyond all addresses. */
	const pgoff_t last = min(iter->last, ULONG_MAX >> PAGE_SHIFT);
	struct vm_area_struct *vma = NULL;

	iter->next = max(iter->next, iter->first);

	VM_WARN_ON_ONCE(!mt_in_rcu(&context->mm->mm_mt));
	rcu_read_lock();
	if (likely(!unmapping && iter->next <= last)) {
		const unsigned long addr = iter->next << PAGE_SHIFT;

		/* Most walks are about one page, and find it there. */
		vma = mtree_load(&context->mm->mm_mt, addr);
		if (cow_vma_is_unmoved(vma, context, addr)) {
			const unsigned long flag = READ_ONCE(context->hint) &
						   COW_HINT_CONTENDED;

			/* Other walks do not look at the word (litmus: hint+release). */
			smp_store_release(&context->hint, (unsigned long)vma | flag);
			iter->next = vma->vm_end >> PAGE_SHIFT;
			goto unlock;
		}
		vma = NULL;
	}

	while (iter->next <= last) {
		unsigned long addr = iter->next << PAGE_SHIFT;
		unsigned long limit = (last << PAGE_SHIFT) | ~PAGE_MASK;
		unsigned long start = addr, end;

		if (unlikely(unmapping && addr >= unmapping->start &&
			     addr < unmapping->end)) {
			limit = min(limit, unmapping->end - 1);
			vma = cow_unmapping_find(unmapping, addr);
			if (vma)
				start = max(addr, vma->vm_start);
			end = vma ? vma->vm_end : unmapping->end;
		} else {
			MA_STATE(mas, &context->mm->mm_mt, addr, addr);

			/* It replaces what it covers, which may be there yet. */
			if (unlikely(unmapping && addr < unmapping->start))
				limit = min(limit, unmapping->start - 1);
			vma = mas_find(&mas, limit);
			if (vma)
				start = max(addr, mas.index);
			end = vma ? mas.last + 1 : limit + 1;
		}

		if (start <= limit && cow_vma_is_unmoved(vma, context, start)) {
			iter->next = vma->vm_end >> PAGE_SHIFT;
			break;
		}
		vma = NULL;
		/* It wraps to 0 at the very end. */
		iter->next = ((end - 1) >> PAGE_SHIFT) + 1;
	}
unlock:
	rcu_read_unlock();

	return vma;
}

/* What cow_vma_iter_next() does where it cannot tell by the hint and the bound. */
struct vm_area_struct *__cow_vma_iter_next(struct cow_vma_iter *iter)
{
	struct vm_area_struct *vma;

	if (!iter->moved) {
		if (iter->next <= iter->last) {
			vma = cow_vma_iter_unmoved(iter);
			if (vma)
				return vma;
		}
		if (iter->last < iter->context->moved_first)
			return NULL;
		iter->moved = cow_moved_tree_iter_first(&iter->context->moved,
							iter->first, iter->last);
	} else {
		iter->moved = cow_moved_tree_iter_next(iter->moved,
						       iter->first, iter->last);
	}

	return iter->moved ? iter->moved->vma : NULL;
}
