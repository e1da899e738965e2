/* SPDX-License-Identifier: GPL-2.0 */
#ifndef __MM_COW_CONTEXT_H
#define __MM_COW_CONTEXT_H

#include <linux/cow_context.h>
#include <linux/list.h>
#include <linux/rcupdate.h>
#include <linux/refcount.h>
#include <linux/rwsem.h>
#include <linux/spinlock.h>
#include <linux/types.h>

/* The deepest generation of a fork tree whose contexts own folios. */
#define COW_CONTEXT_MAX_DEPTH	32

/**
 * struct cow_context - what the anonymous reverse map knows of an mm
 * @rwsem: Held for read, it keeps @mm set and so the mm's page tables in place.
 * @mm: The mm, or NULL once it has no page tables left.
 * @tree: Position in the pre-order list of the fork tree, a ring.
 * @depth: Generation in the fork tree.  The root has 0.
 * @root: First context of the fork tree.
 * @parent: The context whose reference this one holds, NULL in the root: that
 *	    of the mm it was forked from, or in very deep trees @owner.
 * @owner: The context for new folios: this one, or in very deep trees an
 *	   ancestor.
 * @refs: One for the mm, one for each context with this @parent,
 *	  one for each pin.
 * @lock: In the root, guards the list.
 * @rcu: Delays freeing.  While the object is free, its free pointer.
 *
 * @depth, @root, @parent and @owner are constant from the moment the context is
 * linked.
 */
struct cow_context {
	struct rw_semaphore	rwsem;
	struct mm_struct	*mm;
	struct list_head	tree;
	u64			depth;
	struct cow_context	*root;
	struct cow_context	*parent;
	struct cow_context	*owner;
	refcount_t		refs;
	spinlock_t		lock;	/* the list, in the root */
	struct rcu_head		rcu;
};

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
void cow_context_detach(struct cow_context *context);
void cow_context_fork(struct cow_context *child, struct cow_context *parent);

/**
 * struct cow_context_walk - a walk over the live contexts of a subtree
 * @top: Where the walk begins.  The caller keeps it alive.
 * @pos: Where the walk stands, held for read; NULL before and after the walk.
 * @try_lock: End the walk at a context that would have to be waited for.
 * @contended: Set if that has happened.
 *
 * Use DEFINE_COW_CONTEXT_WALK().
 */
struct cow_context_walk {
	struct cow_context	*top;
	struct cow_context	*pos;
	bool			try_lock;
	bool			contended;
};

#define DEFINE_COW_CONTEXT_WALK(name, _top, _try_lock)	\
	struct cow_context_walk name = {			\
		.top = (_top),					\
		.try_lock = (_try_lock),			\
	}

struct cow_context *cow_context_walk_next(struct cow_context_walk *walk);
void cow_context_walk_end(struct cow_context_walk *walk);

#endif /* __MM_COW_CONTEXT_H */
