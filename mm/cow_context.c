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
 * they hold a reference to.  Nobody refers to them, and they go with their mm.
 *
 * Lifetime.  References are held by the mm, by child contexts and by whoever
 * pins a context.  So while a folio is mapped its context is alive: an mm in the
 * subtree maps it.  A context leaves the list, and is freed by RCU, when its
 * last reference goes.  It leaves its mm long before, when the mm has no page
 * tables to look at any more: then context->mm is NULL and walks pass over it.
 *
 * Locks.
 *
 *   mmap_lock
 *     cow_context->rwsem		held for read: context->mm stays set
 *       page table locks
 *
 *   cow_context->lock (of the root)	the list; innermost
 *
 * A walk holds one rwsem at a time, so fork() must link the child before it
 * copies the first page table entry: then a walk, which goes from parent to
 * child, either finds the child or has been at the parent before the copy.
 */

#include <linux/mm_types.h>
#include <linux/mmdebug.h>
#include <linux/rculist.h>
#include <linux/sched.h>
#include <linux/slab.h>

#include <kunit/visibility.h>

#include "cow_context.h"

/* So many contexts a walk passes over before it lets others have the CPU. */
#define COW_CONTEXT_WALK_BATCH	256

static struct kmem_cache *cow_context_cachep;

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
		.use_freeptr_offset = true,
		.freeptr_offset = offsetof(struct cow_context, rcu),
		.ctor = cow_context_ctor,
	};

	cow_context_cachep =
		kmem_cache_create("cow_context", sizeof(struct cow_context),
				  &args, SLAB_PANIC | SLAB_ACCOUNT);
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
	/* Not in the constructor: a context that left its list keeps ->next. */
	INIT_LIST_HEAD(&context->tree);
	context->depth = 0;
	context->root = context;
	context->parent = NULL;
	context->owner = context;
	refcount_set(&context->refs, 1);
	return context;
}
EXPORT_SYMBOL_IF_KUNIT(cow_context_alloc);

/**
 * cow_context_put() - Drop a reference to a context.
 * @context: The context.
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
			spin_unlock(&root->lock);
		}

		kfree_rcu(context, rcu);
		context = parent;
	}
}
EXPORT_SYMBOL_IF_KUNIT(cow_context_put);

/**
 * cow_context_release() - Drop the reference that an mm holds to its context.
 * @context: The context of an mm that is about to be freed.
 *
 * The mm has been through cow_context_detach(), unless it never had a user: then
 * nothing can refer to it or to its context.
 *
 * Context: As cow_context_put().
 */
void cow_context_release(struct cow_context *context)
{
	VM_WARN_ON_ONCE(context->mm && refcount_read(&context->refs) != 1);
	cow_context_put(context);
}
EXPORT_SYMBOL_IF_KUNIT(cow_context_release);

/**
 * cow_context_detach() - Take the mm out of its context.
 * @context: The context of an mm that has just unmapped all it had.
 *
 * Called between unmapping and freeing page tables.  Earlier, a walk would miss
 * entries that still are there; later, it would look at freed page tables.  A
 * second call does nothing.
 *
 * Context: The last user of the mm, with mmap_lock held for write.  Takes
 *	    context->rwsem for write: sleeps until no walk looks into the mm.
 */
void cow_context_detach(struct cow_context *context)
{
	/* Nobody else writes it. */
	if (!context->mm)
		return;

	down_write(&context->rwsem);
	/*
	 * Who sees NULL without taking the lock must also see the page tables
	 * empty: down_write() does not order them before the store.
	 */
	smp_store_release(&context->mm, NULL);
	up_write(&context->rwsem);
}
EXPORT_SYMBOL_IF_KUNIT(cow_context_detach);

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
 * limit leave the list before those forked from them.  A walk from one of these
 * could see more than its own subtree, but no walk begins there.
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
	spin_unlock(&root->lock);
}
EXPORT_SYMBOL_IF_KUNIT(cow_context_fork);

/* The context behind @context in the subtree of @top, or NULL at its end. */
static struct cow_context *cow_context_step(const struct cow_context *top,
					    const struct cow_context *context)
{
	struct cow_context *next;

	RCU_LOCKDEP_WARN(!rcu_read_lock_held(), "step outside RCU");

	/*
	 * The walk may have read, without a lock, that an entry was gone from
	 * @context, or that its mm was.  Then it has to see any child that the
	 * entry was copied to before.  Pairs with unlocking root->lock in
	 * cow_context_fork() and then locking whatever the entry is cleared
	 * under: that orders the link before the entry.
	 */
	smp_rmb();
	next = list_entry_rcu(context->tree.next, struct cow_context, tree);

	return next->depth > top->depth ? next : NULL;
}

/**
 * cow_context_walk_next() - Go to the next live context of a subtree.
 * @walk: The walk.
 *
 * The subtree is that of @walk->top, itself included; contexts come in list
 * order, parents before their children.  A context is live while it has its mm.
 * The one returned is held for read, so that it stays live, until the next call
 * of this function or of cow_context_walk_end().
 *
 * A context that is live all the time is returned if it was linked before the
 * walk began, or before the walk left the context it was forked from.  One that
 * is linked later, or dies in between, may or may not be.
 *
 * What follows a context in the list is read afresh whenever the walk could
 * have waited there: while it stands on a context that it holds for read or has
 * a reference to, which cannot leave the list.  Otherwise it stays in the same
 * RCU read section, and there it may stand on a context that has left the list,
 * with a pointer to what followed when it left.  That leads past contexts that
 * were put in later at that very place.  They are not children of the one that
 * left, which has no mm to fork, so they are the first children of contexts that
 * the walk has been to already; and if one of them had been linked before the
 * walk left its parent, the walk would have come to it and not past it.
 *
 * Context: May sleep.  No cow_context->rwsem may be held but that of
 *	    @walk->pos.  Nor may an outer RCU read section be.
 * Return: The context, with its rwsem held for read; or NULL with no lock held,
 *	   at the end of the subtree or, with @walk->try_lock, where a context
 *	   was locked, which sets @walk->contended.
 */
struct cow_context *cow_context_walk_next(struct cow_context_walk *walk)
{
	struct cow_context *top = walk->top;
	struct cow_context *context = walk->pos;
	unsigned int steps = 0;

	might_sleep();
	VM_WARN_ON_ONCE(!refcount_read(&top->refs));

	rcu_read_lock();
	if (context) {
		lockdep_assert_held_read(&context->rwsem);
		up_read(&context->rwsem);
		context = cow_context_step(top, context);
	} else {
		context = top;
	}

	for (; context; context = cow_context_step(top, context)) {
		/* One that is being freed cannot be kept: try with the next. */
		if (++steps > COW_CONTEXT_WALK_BATCH &&
		    cow_context_tryget(context)) {
			rcu_read_unlock();
			cond_resched();
			rcu_read_lock();
			cow_context_put(context);
			steps = 0;
		}

		/* Pairs with cow_context_detach(). */
		if (!smp_load_acquire(&context->mm))
			continue;

		if (down_read_trylock(&context->rwsem)) {
			/* Detached in between, it may be freed after a grace period. */
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

	walk->pos = NULL;
	return NULL;

found:
	walk->pos = context;
	return context;
}
EXPORT_SYMBOL_IF_KUNIT(cow_context_walk_next);

/**
 * cow_context_walk_end() - End a walk, wherever it stands.
 * @walk: The walk.
 *
 * Need not be called when cow_context_walk_next() has returned NULL.
 *
 * Context: Any in which up_read() may be called.
 */
void cow_context_walk_end(struct cow_context_walk *walk)
{
	struct cow_context *context = walk->pos;

	if (!context)
		return;

	/*
	 * As soon as the count of the rwsem is down, the mm may go and with it
	 * the last reference; but up_read() may still have waiters to wake.
	 */
	rcu_read_lock();
	up_read(&context->rwsem);
	rcu_read_unlock();
	walk->pos = NULL;
}
EXPORT_SYMBOL_IF_KUNIT(cow_context_walk_end);
