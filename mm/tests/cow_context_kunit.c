// SPDX-License-Identifier: GPL-2.0
/*
 * KUnit tests for the fork tree of COW contexts and for walks over it.
 *
 * The contexts are real, the mms are not: a context never looks into its mm, so
 * that a struct test_mm does as well.  It remembers which one it was forked
 * from, and which ones were forked from it; that is the model which lists and
 * walks are compared with.
 */
#include <kunit/test.h>
#include <linux/completion.h>
#include <linux/delay.h>
#include <linux/jiffies.h>
#include <linux/kthread.h>
#include <linux/mm_types.h>
#include <linux/module.h>
#include <linux/prandom.h>
#include <linux/random.h>
#include <linux/rculist.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>
#include <linux/slab.h>
#include <linux/wait_bit.h>

#include "../cow_context.h"

static unsigned int seed;
module_param(seed, uint, 0444);
MODULE_PARM_DESC(seed, "Seed of the randomised tests, 0 for a random one");

enum test_mm_state {
	TEST_MM_LIVE,
	TEST_MM_DETACHED,	/* exit_mmap() */
	TEST_MM_GONE,		/* __mmdrop() */
};

struct test_mm {
	struct cow_context *context;
	struct test_mm *parent;
	struct test_mm *child;		/* the newest */
	struct test_mm *sibling;	/* the next older */
	unsigned int depth;
	unsigned int pins;
	enum test_mm_state state;
	bool in_list;
	/* Of the tests with threads; from test_race->clock */
	unsigned long born;
	unsigned long linked;
	unsigned long dying;
};

/* All mms forked, directly or not, from mms[0], oldest first. */
struct test_tree {
	struct test_mm *mms;
	unsigned int nr;
	unsigned int max;
};

static struct mm_struct *fake_mm(struct test_mm *mm)
{
	return (struct mm_struct *)mm;
}

static struct test_mm *test_mm_of(struct cow_context *context)
{
	return (struct test_mm *)context->mm;
}

static struct test_mm *new_mm(struct test_mm *mm, struct test_mm *parent)
{
	memset(mm, 0, sizeof(*mm));
	mm->context = cow_context_alloc(fake_mm(mm));
	if (!mm->context)
		return NULL;
	if (parent) {
		cow_context_fork(mm->context, parent->context);
		mm->depth = parent->depth + 1;
		mm->parent = parent;
		mm->sibling = parent->child;
		parent->child = mm;
	}
	return mm;
}

static struct test_mm *tree_fork(struct kunit *test, struct test_tree *tree,
				 struct test_mm *parent)
{
	struct test_mm *mm;

	KUNIT_ASSERT_LT(test, tree->nr, tree->max);
	mm = new_mm(&tree->mms[tree->nr], parent);
	KUNIT_ASSERT_NOT_NULL(test, mm);
	tree->nr++;
	return mm;
}

static struct test_mm *tree_init(struct kunit *test, struct test_tree *tree,
				 unsigned int max)
{
	tree->mms = kunit_kcalloc(test, max, sizeof(*tree->mms), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, tree->mms);
	tree->nr = 0;
	tree->max = max;
	return tree_fork(test, tree, NULL);
}

static void detach_mm(struct test_mm *mm)
{
	cow_context_detach(mm->context);
	mm->state = TEST_MM_DETACHED;
}

static void release_mm(struct test_mm *mm)
{
	mm->state = TEST_MM_GONE;
	cow_context_release(mm->context);
}

static void exit_mm(struct test_mm *mm)
{
	if (mm->state == TEST_MM_LIVE)
		detach_mm(mm);
	if (mm->state == TEST_MM_DETACHED)
		release_mm(mm);
}

static void pin_mm(struct test_mm *mm)
{
	cow_context_get(mm->context);
	mm->pins++;
}

static void unpin_mm(struct test_mm *mm)
{
	mm->pins--;
	cow_context_put(mm->context);
}

/* The one whose context owns the folios of @mm. */
static struct test_mm *owner_of(struct test_mm *mm)
{
	while (mm->depth > COW_CONTEXT_MAX_DEPTH)
		mm = mm->parent;
	return mm;
}

static bool is_in_subtree(const struct test_mm *mm, const struct test_mm *top)
{
	while (mm && mm != top)
		mm = mm->parent;
	return mm;
}

/* What follows @mm in pre-order in the subtree of @top. */
static struct test_mm *model_next(struct test_mm *top, struct test_mm *mm)
{
	if (mm->child)
		return mm->child;
	while (mm != top) {
		if (mm->sibling)
			return mm->sibling;
		mm = mm->parent;
	}
	return NULL;
}

/* Does the walk from @top return what the model has, in the same order? */
static bool walk_is_right(struct kunit *test, struct test_mm *top)
{
	DEFINE_COW_CONTEXT_WALK(walk, top->context, false);
	struct cow_context *context;
	struct test_mm *mm;
	unsigned int nr = 0;

	for (mm = top; mm; mm = model_next(top, mm)) {
		if (mm->state != TEST_MM_LIVE)
			continue;
		context = cow_context_walk_next(&walk);
		if (context != mm->context || context->mm != fake_mm(mm)) {
			kunit_err(test, "walk: %s at %u, want depth %u",
				  context ? "wrong context" : "early end", nr,
				  mm->depth);
			cow_context_walk_end(&walk);
			return false;
		}
		nr++;
	}
	context = cow_context_walk_next(&walk);
	if (context) {
		kunit_err(test, "walk: more than the %u contexts wanted", nr);
		cow_context_walk_end(&walk);
		return false;
	}
	return !walk.contended && !walk.pos;
}

/*
 * Does the list have what the model has?  That is every context that its mm or
 * somebody else refers to, and the parents that these refer to.
 */
static bool list_is_right(struct kunit *test, struct test_tree *tree)
{
	struct cow_context *root = NULL, *pos;
	unsigned int i, nr = 0;
	struct test_mm *mm;

	for (i = 0; i < tree->nr; i++) {
		mm = &tree->mms[i];
		mm->in_list = mm->pins || mm->state != TEST_MM_GONE;
	}
	for (i = tree->nr - 1; i; i--) {
		mm = &tree->mms[i];
		if (mm->in_list)
			owner_of(mm->parent)->in_list = true;
	}
	if (!tree->mms[0].in_list)
		return true;

	root = tree->mms[0].context;
	pos = root;
	for (mm = tree->mms; mm; mm = model_next(tree->mms, mm)) {
		if (!mm->in_list)
			continue;
		if (nr && pos == root) {
			kunit_err(test, "list: ends after %u", nr);
			return false;
		}
		if (pos != mm->context || pos->depth != mm->depth ||
		    pos->root != root ||
		    pos->owner != owner_of(mm)->context ||
		    pos->parent != (mm->parent ?
				    owner_of(mm->parent)->context : NULL)) {
			kunit_err(test, "list: wrong context at %u, want depth %u",
				  nr, mm->depth);
			return false;
		}
		pos = list_next_entry(pos, tree);
		nr++;
	}
	if (pos != root) {
		kunit_err(test, "list: more than the %u contexts wanted", nr);
		return false;
	}
	return true;
}

static unsigned int list_length(struct cow_context *root)
{
	unsigned int nr = 1;
	struct cow_context *context;

	list_for_each_entry(context, &root->tree, tree)
		nr++;
	return nr;
}

/* All but the root are gone, and it is held by the test alone. */
static void expect_alone(struct kunit *test, struct cow_context *root)
{
	KUNIT_EXPECT_TRUE(test, list_empty(&root->tree));
	KUNIT_EXPECT_EQ(test, refcount_read(&root->refs), 1);
}

static unsigned int test_seed(struct kunit *test)
{
	unsigned int s = seed ?: get_random_u32();

	kunit_info(test, "seed=%u\n", s);
	return s;
}

static void cow_context_alone(struct kunit *test)
{
	struct test_tree tree;
	struct test_mm *mm = tree_init(test, &tree, 1);
	struct cow_context *context = mm->context;

	KUNIT_EXPECT_PTR_EQ(test, context->root, context);
	KUNIT_EXPECT_PTR_EQ(test, context->owner, context);
	KUNIT_EXPECT_NULL(test, context->parent);
	KUNIT_EXPECT_EQ(test, context->depth, 0);
	KUNIT_EXPECT_TRUE(test, walk_is_right(test, mm));
	expect_alone(test, context);

	detach_mm(mm);
	detach_mm(mm);
	KUNIT_EXPECT_FALSE(test, rwsem_is_locked(&context->rwsem));
	KUNIT_EXPECT_TRUE(test, walk_is_right(test, mm));
	expect_alone(test, context);
	release_mm(mm);
}

/* The @nr'th permutation of four. */
static void permute(unsigned int nr, unsigned int order[4])
{
	unsigned int i, pick;

	for (i = 0; i < 4; i++)
		order[i] = i;
	for (i = 4; i > 1; i--) {
		pick = nr % i;
		nr /= i;
		swap(order[i - 1], order[pick]);
	}
}

/* A parent, two children and a grandchild end in every order. */
static void cow_context_exit_orders(struct kunit *test)
{
	unsigned int i, nr, detach[4], release[4];
	struct test_tree tree;
	struct test_mm *root;
	bool ok = true;

	tree_init(test, &tree, 4);
	release_mm(tree.mms);

	for (nr = 0; nr < 24 * 24 && ok; nr++) {
		permute(nr / 24, detach);
		permute(nr % 24, release);

		tree.nr = 0;
		root = tree_fork(test, &tree, NULL);
		tree_fork(test, &tree, root);
		tree_fork(test, &tree, &tree.mms[1]);
		tree_fork(test, &tree, root);
		pin_mm(root);
		ok = list_is_right(test, &tree) && walk_is_right(test, root);

		for (i = 0; i < 4; i++) {
			detach_mm(&tree.mms[detach[i]]);
			/* If the orders are the same, one is gone before the next. */
			if (nr / 24 == nr % 24)
				release_mm(&tree.mms[release[i]]);
			ok = ok && list_is_right(test, &tree) &&
			     walk_is_right(test, root);
		}
		for (i = 0; i < 4; i++) {
			if (tree.mms[release[i]].state != TEST_MM_GONE)
				release_mm(&tree.mms[release[i]]);
			ok = ok && list_is_right(test, &tree) &&
			     walk_is_right(test, root);
		}
		expect_alone(test, root->context);
		unpin_mm(root);
	}
	KUNIT_EXPECT_TRUE_MSG(test, ok, "detach order %u, release order %u",
			      (nr - 1) / 24, (nr - 1) % 24);
}

static void cow_context_failed_fork(struct kunit *test)
{
	struct test_mm *root, *mm;
	struct test_tree tree;

	root = tree_init(test, &tree, 4);
	tree_fork(test, &tree, root);

	/* Linked, as when a later step of dup_mmap() fails */
	mm = tree_fork(test, &tree, root);
	KUNIT_EXPECT_TRUE(test, walk_is_right(test, root));
	detach_mm(mm);
	KUNIT_EXPECT_TRUE(test, walk_is_right(test, root));
	release_mm(mm);
	KUNIT_EXPECT_TRUE(test, walk_is_right(test, root));
	KUNIT_EXPECT_TRUE(test, list_is_right(test, &tree));
	KUNIT_EXPECT_EQ(test, refcount_read(&root->context->refs), 2);

	/* Not linked yet, not detached either: mm_init() fails */
	mm = new_mm(&tree.mms[tree.nr], NULL);
	KUNIT_ASSERT_NOT_NULL(test, mm);
	release_mm(mm);
	KUNIT_EXPECT_TRUE(test, list_is_right(test, &tree));

	exit_mm(&tree.mms[1]);
	expect_alone(test, root->context);
	exit_mm(root);
}

/* Owner, parent and references around COW_CONTEXT_MAX_DEPTH. */
static void cow_context_depth_limit(struct kunit *test)
{
	const unsigned int limit = COW_CONTEXT_MAX_DEPTH;
	struct cow_context *context;
	struct test_mm *mm, *side;
	struct test_tree tree;
	unsigned int depth;

	mm = tree_init(test, &tree, limit + 6);
	for (depth = 1; depth < limit + 4; depth++) {
		mm = tree_fork(test, &tree, mm);
		context = mm->context;
		KUNIT_EXPECT_EQ(test, context->depth, depth);
		KUNIT_EXPECT_PTR_EQ(test, context->owner,
				    tree.mms[min(depth, limit)].context);
		KUNIT_EXPECT_PTR_EQ(test, context->parent,
				    tree.mms[min(depth - 1, limit)].context);
	}
	/* Its mm, and one child or the four deeper ones */
	KUNIT_EXPECT_EQ(test, refcount_read(&tree.mms[limit - 1].context->refs), 2);
	KUNIT_EXPECT_EQ(test, refcount_read(&tree.mms[limit].context->refs), 4);
	KUNIT_EXPECT_EQ(test, refcount_read(&tree.mms[limit + 1].context->refs), 1);

	/* Right behind its true parent, not behind its owner */
	side = tree_fork(test, &tree, &tree.mms[limit + 1]);
	KUNIT_EXPECT_PTR_EQ(test, side->context,
			    list_next_entry(tree.mms[limit + 1].context, tree));
	/* A subtree that ends where this one's deep contexts begin */
	side = tree_fork(test, &tree, &tree.mms[limit - 1]);
	KUNIT_EXPECT_PTR_EQ(test, side->context->owner, side->context);

	for (depth = 0; depth <= limit; depth++)
		KUNIT_EXPECT_TRUE(test, walk_is_right(test, &tree.mms[depth]));
	KUNIT_EXPECT_TRUE(test, walk_is_right(test, side));
	KUNIT_EXPECT_TRUE(test, list_is_right(test, &tree));

	/* Below the limit a context goes with its mm, above it does not. */
	exit_mm(&tree.mms[limit + 2]);
	exit_mm(&tree.mms[limit + 1]);
	exit_mm(&tree.mms[limit - 1]);
	KUNIT_EXPECT_EQ(test, list_length(tree.mms[0].context), limit + 4);
	for (depth = 0; depth <= limit; depth++)
		KUNIT_EXPECT_TRUE(test, walk_is_right(test, &tree.mms[depth]));
	KUNIT_EXPECT_TRUE(test, list_is_right(test, &tree));

	for (depth = tree.nr - 1; depth; depth--)
		exit_mm(&tree.mms[depth]);
	expect_alone(test, tree.mms[0].context);
	exit_mm(tree.mms);
}

/* From a pinned context below the limit: what was forked from it, and not its siblings */
static void cow_context_walk_below_limit(struct kunit *test)
{
	struct test_mm *mm, *side, *top, *child, *last;
	struct test_tree tree;

	mm = tree_init(test, &tree, COW_CONTEXT_MAX_DEPTH + 5);
	while (mm->depth < COW_CONTEXT_MAX_DEPTH)
		mm = tree_fork(test, &tree, mm);
	side = tree_fork(test, &tree, mm);
	top = tree_fork(test, &tree, mm);
	child = tree_fork(test, &tree, top);
	last = tree_fork(test, &tree, child);
	KUNIT_EXPECT_TRUE(test, walk_is_right(test, top));

	pin_mm(top);
	exit_mm(child);
	exit_mm(top);
	DEFINE_COW_CONTEXT_WALK(walk, top->context, false);

	KUNIT_EXPECT_PTR_EQ(test, cow_context_walk_next(&walk), last->context);
	KUNIT_EXPECT_NULL(test, cow_context_walk_next(&walk));

	unpin_mm(top);
	exit_mm(last);
	exit_mm(side);
	for (; mm->depth; mm = mm->parent)
		exit_mm(mm);
	expect_alone(test, tree.mms[0].context);
	exit_mm(tree.mms);
}

#define INHERIT_MMS	200

/* Does cow_context_inherits() name the owners of all ancestors, and no other? */
static bool inherits_is_right(struct test_tree *tree)
{
	struct test_mm *mm, *other, *pos;
	unsigned int i, j;
	bool want;

	for (i = 0; i < tree->nr; i++) {
		mm = &tree->mms[i];
		if (mm->state == TEST_MM_GONE)
			continue;
		for (j = 0; j < tree->nr; j++) {
			other = &tree->mms[j];
			want = false;
			for (pos = mm; pos; pos = pos->parent)
				want |= owner_of(pos) == other;
			if (cow_context_inherits(mm->context, other->context) != want)
				return false;
		}
	}
	return true;
}

/* Of all whose memory both have, the deepest */
static struct cow_context *common_of(struct test_tree *tree, struct test_mm *a,
				     struct test_mm *b)
{
	struct test_mm *pos;

	for (pos = owner_of(a); pos; pos = pos->parent)
		if (cow_context_inherits(b->context, pos->context))
			return pos->context;
	return NULL;
}

static bool common_is_right(struct test_tree *tree)
{
	struct test_mm *a, *b;
	unsigned int i, j;

	for (i = 0; i < tree->nr; i++) {
		a = &tree->mms[i];
		for (j = 0; a->state != TEST_MM_GONE && j < tree->nr; j++) {
			b = &tree->mms[j];
			if (b->state != TEST_MM_GONE &&
			    cow_context_common(a->context->owner, b->context->owner) !=
			    common_of(tree, a, b))
				return false;
		}
	}
	return true;
}

static void cow_context_inherit(struct kunit *test)
{
	const unsigned int limit = COW_CONTEXT_MAX_DEPTH;
	struct test_tree tree, stranger;
	struct test_mm *mm, *top;
	struct rnd_state rnd;
	unsigned int i;

	/* A line of more than what owns folios, and then branches anywhere */
	top = tree_init(test, &tree, INHERIT_MMS);
	for (mm = top; tree.nr < limit + 8; )
		mm = tree_fork(test, &tree, mm);
	KUNIT_EXPECT_TRUE(test, cow_context_inherits(mm->context, top->context));
	KUNIT_EXPECT_FALSE(test, cow_context_inherits(top->context, mm->context));
	KUNIT_EXPECT_TRUE(test, cow_context_inherits(mm->context,
						     tree.mms[limit].context));
	/* Nothing belongs to these, not even of their own. */
	KUNIT_EXPECT_FALSE(test, cow_context_inherits(mm->context, mm->context));
	KUNIT_EXPECT_FALSE(test, cow_context_inherits(mm->context,
						      mm->parent->context));

	prandom_seed_state(&rnd, test_seed(test));
	while (tree.nr < tree.max)
		tree_fork(test, &tree, &tree.mms[prandom_u32_state(&rnd) % tree.nr]);
	KUNIT_EXPECT_TRUE(test, inherits_is_right(&tree));
	KUNIT_EXPECT_TRUE(test, common_is_right(&tree));

	/* Another tree has nothing of this one. */
	tree_init(test, &stranger, 1);
	KUNIT_EXPECT_NULL(test, cow_context_common(stranger.mms->context,
						   top->context));
	KUNIT_EXPECT_FALSE(test, cow_context_inherits(stranger.mms->context,
						      top->context));
	KUNIT_EXPECT_FALSE(test, cow_context_inherits(mm->context,
						      stranger.mms->context));
	exit_mm(stranger.mms);

	/* Contexts that are freed and not used again are nobody's. */
	for (i = 0; i < tree.nr; i++) {
		if (prandom_u32_state(&rnd) % 2)
			exit_mm(&tree.mms[i]);
	}
	KUNIT_EXPECT_TRUE(test, inherits_is_right(&tree));
	for (i = 0; i < tree.nr; i++)
		exit_mm(&tree.mms[i]);
}

#define MODEL_EPISODES	16
#define MODEL_MMS	300
#define MODEL_PINS	8

/*
 * Fork, exit and pin at random.  Episodes differ in how much they like to fork
 * from the newest mm, which makes deep trees, or from any.
 */
static bool model_episode(struct kunit *test, struct test_tree *tree,
			  struct rnd_state *rnd)
{
	unsigned int deep = prandom_u32_state(rnd) % 5;
	struct test_mm *pinned[MODEL_PINS] = {};
	unsigned int step, live, i;
	struct test_mm *mm;
	bool all;

	tree->nr = 0;
	pin_mm(tree_fork(test, tree, NULL));

	for (step = 0; tree->nr < tree->max; step++) {
		/* Do not let it die out. */
		live = 0;
		for (i = 0; i < tree->nr; i++)
			live += tree->mms[i].state == TEST_MM_LIVE;

		if (prandom_u32_state(rnd) % 4 < deep)
			i = tree->nr - 1 - prandom_u32_state(rnd) % min(tree->nr, 3);
		else
			i = prandom_u32_state(rnd) % tree->nr;
		/* The next one with something left to do */
		while (tree->mms[i].state == TEST_MM_GONE)
			i = (i + 1) % tree->nr;
		mm = &tree->mms[i];

		switch (prandom_u32_state(rnd) % 16) {
		case 0 ... 5:
			if (mm->state == TEST_MM_LIVE)
				tree_fork(test, tree, mm);
			break;
		case 6:
			if (mm->state == TEST_MM_LIVE)
				exit_mm(tree_fork(test, tree, mm));
			break;
		case 7 ... 9:
			if (mm->state == TEST_MM_LIVE && live > 1)
				detach_mm(mm);
			break;
		case 10 ... 12:
			if (mm->state == TEST_MM_DETACHED || live > 1)
				exit_mm(mm);
			break;
		case 13:
			i = prandom_u32_state(rnd) % MODEL_PINS;
			if (mm->state == TEST_MM_LIVE && !pinned[i]) {
				pinned[i] = owner_of(mm);
				pin_mm(pinned[i]);
			}
			break;
		default:
			i = prandom_u32_state(rnd) % MODEL_PINS;
			if (pinned[i]) {
				unpin_mm(pinned[i]);
				pinned[i] = NULL;
			}
		}

		if (!list_is_right(test, tree))
			goto wrong;
		/* The root, a few others, and sometimes all */
		all = !(step % 64);
		for (i = 0; i < tree->nr; i++) {
			mm = &tree->mms[i];
			if (i && !all && prandom_u32_state(rnd) % 32)
				continue;
			if (mm->depth > COW_CONTEXT_MAX_DEPTH)
				continue;
			if (!mm->pins && mm->state != TEST_MM_LIVE)
				continue;
			if (!walk_is_right(test, mm))
				goto wrong;
		}
		cond_resched();
	}

	for (i = 0; i < MODEL_PINS; i++) {
		if (pinned[i])
			unpin_mm(pinned[i]);
	}
	for (i = 0; i < tree->nr; i++)
		exit_mm(&tree->mms[i]);
	expect_alone(test, tree->mms[0].context);
	unpin_mm(&tree->mms[0]);
	return true;

wrong:
	kunit_err(test, "episode with deep=%u, step %u", deep, step);
	return false;
}

static void cow_context_model(struct kunit *test)
{
	struct test_tree tree;
	struct rnd_state rnd;
	unsigned int i;

	prandom_seed_state(&rnd, test_seed(test));
	tree_init(test, &tree, MODEL_MMS);
	exit_mm(tree.mms);
	for (i = 0; i < MODEL_EPISODES; i++)
		KUNIT_ASSERT_TRUE(test, model_episode(test, &tree, &rnd));
}

/*
 * For a line of forks that is longer than what is kept of it: the first of @nr mms
 * is the root, whose context stays, the others are used again and again.
 */
static struct test_mm *line_init(struct kunit *test, unsigned int nr)
{
	struct test_mm *mms = kunit_kcalloc(test, nr, sizeof(*mms), GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, mms);
	KUNIT_ASSERT_NOT_NULL(test, new_mm(mms, NULL));
	pin_mm(mms);
	return mms;
}

#define GENERATIONS	100000

/* Each mm forks once and exits. */
static void cow_context_chain(struct kunit *test)
{
	struct test_mm *mms = line_init(test, 3), *mm = mms, *child;
	struct cow_context *top = mms->context;
	unsigned int i;

	for (i = 1; i <= GENERATIONS; i++) {
		DEFINE_COW_CONTEXT_WALK(walk, top, false);
		struct cow_context *first, *second;

		child = new_mm(&mms[1 + i % 2], mm);
		KUNIT_ASSERT_NOT_NULL(test, child);
		child->depth = i;
		exit_mm(mm);
		mm = child;

		if (i % 64)
			continue;
		cond_resched();
		KUNIT_ASSERT_EQ(test, mm->context->depth, i);
		KUNIT_ASSERT_LE(test, list_length(top), COW_CONTEXT_MAX_DEPTH + 2);
		first = cow_context_walk_next(&walk);
		second = first ? cow_context_walk_next(&walk) : NULL;
		cow_context_walk_end(&walk);
		KUNIT_ASSERT_PTR_EQ(test, first, mm->context);
		KUNIT_ASSERT_NULL(test, second);
	}

	exit_mm(mm);
	expect_alone(test, top);
	unpin_mm(mms);
}

#define COMB_GENERATIONS	25000
#define TEETH			8

/* As before, but each mm leaves behind a child that lives for a while. */
static void cow_context_comb(struct kunit *test)
{
	struct test_mm *mms = line_init(test, 3 + TEETH), *mm = mms, *child, *tooth;
	struct cow_context *top = mms->context;
	unsigned int i, nr;

	for (i = 1; i <= COMB_GENERATIONS; i++) {
		DEFINE_COW_CONTEXT_WALK(walk, top, false);

		tooth = &mms[3 + i % TEETH];
		if (tooth->context)
			exit_mm(tooth);
		KUNIT_ASSERT_NOT_NULL(test, new_mm(tooth, mm));
		child = new_mm(&mms[1 + i % 2], mm);
		KUNIT_ASSERT_NOT_NULL(test, child);
		exit_mm(mm);
		mm = child;

		if (i % 64)
			continue;
		cond_resched();
		KUNIT_ASSERT_LE(test, list_length(top),
				COW_CONTEXT_MAX_DEPTH + 1 + TEETH + 1);
		for (nr = 0; cow_context_walk_next(&walk); nr++)
			;
		KUNIT_ASSERT_EQ(test, nr, TEETH + 1);
	}

	exit_mm(mm);
	for (i = 0; i < TEETH; i++)
		exit_mm(&mms[3 + i]);
	expect_alone(test, top);
	unpin_mm(mms);
}

#define DEAD_RUN	5000

/* Many dead contexts in a row, and a live one at the end. */
static void cow_context_dead_run(struct kunit *test)
{
	struct test_tree tree;
	struct test_mm *root;
	unsigned int i;

	root = tree_init(test, &tree, DEAD_RUN + 2);
	tree_fork(test, &tree, root);
	for (i = 0; i < DEAD_RUN; i++) {
		pin_mm(tree_fork(test, &tree, root));
		exit_mm(&tree.mms[i + 2]);
	}
	KUNIT_EXPECT_TRUE(test, walk_is_right(test, root));
	KUNIT_EXPECT_TRUE(test, walk_is_right(test, &tree.mms[1]));
	KUNIT_EXPECT_TRUE(test, walk_is_right(test, &tree.mms[DEAD_RUN + 1]));
	for (i = 0; i < DEAD_RUN; i++) {
		if (refcount_read(&tree.mms[i + 2].context->refs) != 1)
			break;
	}
	KUNIT_EXPECT_EQ(test, i, DEAD_RUN);

	for (i = 0; i < DEAD_RUN; i++)
		unpin_mm(&tree.mms[i + 2]);
	exit_mm(&tree.mms[1]);
	expect_alone(test, root->context);
	exit_mm(root);
}

static void cow_context_try_lock(struct kunit *test)
{
	struct cow_context *first, *second;
	struct test_mm *root, *mm;
	struct test_tree tree;

	/* The one behind @mm is not locked, but the walk must not get there. */
	root = tree_init(test, &tree, 3);
	mm = tree_fork(test, &tree, root);
	tree_fork(test, &tree, mm);

	{
		DEFINE_COW_CONTEXT_WALK(walk, root->context, true);

		down_write(&mm->context->rwsem);
		first = cow_context_walk_next(&walk);
		second = cow_context_walk_next(&walk);
		up_write(&mm->context->rwsem);
		cow_context_walk_end(&walk);
		KUNIT_EXPECT_PTR_EQ(test, first, root->context);
		KUNIT_EXPECT_NULL(test, second);
		KUNIT_EXPECT_TRUE(test, walk.contended);
	}
	{
		DEFINE_COW_CONTEXT_WALK(walk, root->context, true);

		first = cow_context_walk_next(&walk);
		second = cow_context_walk_next(&walk);
		KUNIT_EXPECT_FALSE(test, rwsem_is_locked(&root->context->rwsem));
		KUNIT_EXPECT_TRUE(test, rwsem_is_locked(&mm->context->rwsem));
		cow_context_walk_end(&walk);
		KUNIT_EXPECT_FALSE(test, rwsem_is_locked(&mm->context->rwsem));
		KUNIT_EXPECT_PTR_EQ(test, first, root->context);
		KUNIT_EXPECT_PTR_EQ(test, second, mm->context);
		KUNIT_EXPECT_FALSE(test, walk.contended);
	}

	exit_mm(&tree.mms[2]);
	exit_mm(mm);
	expect_alone(test, root->context);
	exit_mm(root);
}

struct test_waiter {
	struct cow_context *context;
	struct cow_context *seen[3];
	bool detach;
	struct completion done;
};

static int writer_fn(void *data)
{
	struct test_waiter *w = data;

	if (w->detach) {
		cow_context_detach(w->context);
	} else {
		down_write(&w->context->rwsem);
		up_write(&w->context->rwsem);
	}
	complete(&w->done);
	return 0;
}

static int walker_fn(void *data)
{
	struct test_waiter *w = data;
	DEFINE_COW_CONTEXT_WALK(walk, w->context, false);
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(w->seen); i++) {
		w->seen[i] = cow_context_walk_next(&walk);
		if (!w->seen[i])
			break;
	}
	cow_context_walk_end(&walk);
	complete(&w->done);
	return 0;
}

#define wait_until(cond) ({						\
	unsigned long __end = jiffies + 20 * HZ;			\
	bool __ok;							\
									\
	while (!(__ok = (cond)) && time_before(jiffies, __end))		\
		schedule_timeout_uninterruptible(1);			\
	__ok;								\
})

static void test_wait(struct kunit *test, bool detach)
{
	struct test_waiter writer = { .detach = detach };
	struct test_waiter walker = {};
	struct test_mm *root, *mm, *grandchild;
	struct test_tree tree;
	bool queued, pinned;

	root = tree_init(test, &tree, 3);
	mm = tree_fork(test, &tree, root);
	grandchild = tree_fork(test, &tree, mm);

	writer.context = mm->context;
	init_completion(&writer.done);
	walker.context = root->context;
	init_completion(&walker.done);

	/* A reader, then a writer behind it, then the walk behind the writer */
	down_read(&mm->context->rwsem);
	kthread_run(writer_fn, &writer, "cow_context_writer");
	queued = wait_until(rwsem_is_contended(&mm->context->rwsem));
	kthread_run(walker_fn, &walker, "cow_context_walker");
	pinned = wait_until(refcount_read(&mm->context->refs) == 3);
	up_read(&mm->context->rwsem);
	wait_for_completion(&writer.done);
	wait_for_completion(&walker.done);

	KUNIT_EXPECT_TRUE(test, queued);
	KUNIT_EXPECT_TRUE(test, pinned);
	KUNIT_EXPECT_EQ(test, refcount_read(&mm->context->refs), 2);
	KUNIT_EXPECT_PTR_EQ(test, walker.seen[0], root->context);
	if (detach) {
		mm->state = TEST_MM_DETACHED;
		KUNIT_EXPECT_PTR_EQ(test, walker.seen[1], grandchild->context);
		KUNIT_EXPECT_NULL(test, walker.seen[2]);
	} else {
		KUNIT_EXPECT_PTR_EQ(test, walker.seen[1], mm->context);
		KUNIT_EXPECT_PTR_EQ(test, walker.seen[2], grandchild->context);
	}

	exit_mm(grandchild);
	exit_mm(mm);
	expect_alone(test, root->context);
	exit_mm(root);
}

#define GATE_FORKS	10000

static int gate_fn(void *data)
{
	struct test_waiter *w = data;

	cow_context_wait_for_walks(w->context);
	complete(&w->done);
	return 0;
}

/* At its next step, the walk has come to too many contexts. */
static void come_far(struct cow_context_walk *walk)
{
	walk->seen = LONG_MAX;
	walk->enough = 1;
}

/* A walk comes to an end although whatever it comes to forks, until it has to wait. */
static void cow_context_gate(struct kunit *test)
{
	struct test_waiter waiter = {};
	struct cow_context *context;
	struct test_tree tree;
	struct test_mm *root;
	unsigned int visited = 0;

	root = tree_init(test, &tree, GATE_FORKS);
	DEFINE_COW_CONTEXT_WALK(walk, root->context, false);

	while ((context = cow_context_walk_next(&walk)) && tree.nr < GATE_FORKS) {
		visited++;
		if (!atomic_read(&root->context->gate))
			tree_fork(test, &tree, test_mm_of(context));
	}
	KUNIT_EXPECT_NULL(test, context);
	KUNIT_EXPECT_EQ(test, visited, tree.nr);
	KUNIT_EXPECT_LT(test, tree.nr, GATE_FORKS);
	KUNIT_EXPECT_EQ(test, root->context->nr, tree.nr);
	KUNIT_EXPECT_EQ(test, atomic_read(&root->context->gate), 0);
	KUNIT_EXPECT_EQ(test, cow_context_wait_for_walks(root->context), 0);

	/* What waits goes on when the walk is broken off, too. */
	init_completion(&waiter.done);
	waiter.context = root->context;
	cow_context_walk_next(&walk);
	come_far(&walk);
	cow_context_walk_next(&walk);
	KUNIT_EXPECT_EQ(test, atomic_read(&root->context->gate), 1);
	kthread_run(gate_fn, &waiter, "cow_context_gate");
	KUNIT_EXPECT_EQ(test, wait_for_completion_timeout(&waiter.done, HZ / 10), 0);
	cow_context_walk_end(&walk);
	KUNIT_EXPECT_NE(test, wait_for_completion_timeout(&waiter.done, 20 * HZ), 0);

	while (tree.nr > 1)
		exit_mm(&tree.mms[--tree.nr]);
	expect_alone(test, root->context);
	exit_mm(root);
}

/* A walk keeps what it needs of where it began, and of the root, until it ends. */
static void cow_context_walk_holds(struct kunit *test)
{
	struct test_mm *root, *top, *child, *last;
	struct cow_context *context;
	struct test_tree tree;

	root = tree_init(test, &tree, 4);
	context = root->context;
	top = tree_fork(test, &tree, root);
	last = tree_fork(test, &tree, top);
	child = tree_fork(test, &tree, top);
	DEFINE_COW_CONTEXT_WALK(walk, top->context, false);

	rcu_read_lock();
	KUNIT_EXPECT_PTR_EQ(test, cow_context_walk_first(&walk), top->context);
	KUNIT_EXPECT_PTR_EQ(test, cow_context_walk_next(&walk), child->context);
	exit_mm(root);
	exit_mm(top);
	come_far(&walk);
	KUNIT_EXPECT_PTR_EQ(test, cow_context_walk_next(&walk), last->context);
	KUNIT_EXPECT_PTR_EQ(test, walk.gated, context);
	/* That of the context where the walk began, and the pin */
	KUNIT_EXPECT_EQ(test, refcount_read(&context->refs), 2);
	KUNIT_EXPECT_NULL(test, cow_context_walk_next(&walk));
	KUNIT_EXPECT_NULL(test, walk.gated);
	KUNIT_EXPECT_EQ(test, refcount_read(&context->refs), 1);
	KUNIT_EXPECT_EQ(test, atomic_read(&context->gate), 0);
	exit_mm(child);
	exit_mm(last);
}

/* It may begin at one that has left the list in the same RCU read section. */
static void cow_context_walk_of_dead(struct kunit *test)
{
	struct test_mm *root, *top, *sibling;
	struct test_tree tree;

	root = tree_init(test, &tree, 4);
	sibling = tree_fork(test, &tree, root);
	tree_fork(test, &tree, sibling);
	top = tree_fork(test, &tree, root);
	DEFINE_COW_CONTEXT_WALK(walk, top->context, false);

	detach_mm(top);
	rcu_read_lock();
	release_mm(top);
	/* What follows it in the list is not below it. */
	KUNIT_EXPECT_NULL(test, cow_context_walk_first(&walk));

	exit_mm(&tree.mms[2]);
	exit_mm(sibling);
	expect_alone(test, root->context);
	exit_mm(root);
}

/* A gate that two walks have closed is closed until both have ended. */
static void cow_context_gate_of_two(struct kunit *test)
{
	struct cow_context *context;
	struct test_tree tree;
	struct test_mm *root;

	root = tree_init(test, &tree, 2);
	context = root->context;
	tree_fork(test, &tree, root);
	DEFINE_COW_CONTEXT_WALK(first, context, false);
	DEFINE_COW_CONTEXT_WALK(second, context, false);

	cow_context_walk_next(&first);
	come_far(&first);
	cow_context_walk_next(&first);
	cow_context_walk_next(&second);
	come_far(&second);
	cow_context_walk_next(&second);
	KUNIT_EXPECT_EQ(test, atomic_read(&context->gate), 2);
	cow_context_walk_end(&first);
	KUNIT_EXPECT_EQ(test, atomic_read(&context->gate), 1);
	cow_context_walk_end(&second);
	KUNIT_EXPECT_EQ(test, atomic_read(&context->gate), 0);

	exit_mm(&tree.mms[1]);
	exit_mm(root);
}

struct test_killed {
	struct cow_context *context;
	struct completion ready;
	struct completion done;
	int ret;
};

static int killed_fn(void *data)
{
	struct test_killed *k = data;

	allow_signal(SIGKILL);
	complete(&k->ready);
	k->ret = cow_context_wait_for_walks(k->context);
	complete(&k->done);
	return 0;
}

/* Who waits for a walk can be killed. */
static void cow_context_gate_killed(struct kunit *test)
{
	struct test_killed killed = {};
	struct task_struct *task;
	struct test_tree tree;
	struct test_mm *root;

	root = tree_init(test, &tree, 1);
	init_completion(&killed.ready);
	init_completion(&killed.done);
	killed.context = root->context;
	atomic_inc(&root->context->gate);

	task = kthread_create(killed_fn, &killed, "cow_context_gate");
	KUNIT_ASSERT_FALSE(test, IS_ERR(task));
	get_task_struct(task);
	wake_up_process(task);
	wait_for_completion(&killed.ready);
	KUNIT_EXPECT_EQ(test, wait_for_completion_timeout(&killed.done, HZ / 10), 0);
	send_sig(SIGKILL, task, 1);
	KUNIT_EXPECT_NE(test, wait_for_completion_timeout(&killed.done, 20 * HZ), 0);
	KUNIT_EXPECT_EQ(test, killed.ret, -ERESTARTSYS);

	/* Only if it has not been killed */
	atomic_dec(&root->context->gate);
	wake_up_var(&root->context->gate);
	put_task_struct(task);
	exit_mm(root);
}

static void cow_context_wait(struct kunit *test)
{
	test_wait(test, false);
}

static void cow_context_wait_detached(struct kunit *test)
{
	test_wait(test, true);
}

#define STORM	25000

struct test_storm {
	struct test_tree tree;
	atomic_t running;
	atomic_t forked;
	bool dead;
	unsigned long walks;
	struct completion done;
};

static int storm_walker_fn(void *data)
{
	struct test_storm *storm = data;
	struct cow_context *context;

	while (atomic_read(&storm->running) > 1) {
		DEFINE_COW_CONTEXT_WALK(walk, storm->tree.mms[0].context, false);

		while ((context = cow_context_walk_next(&walk))) {
			if (!context->mm)
				storm->dead = true;
		}
		storm->walks++;
		cond_resched();
	}
	if (atomic_dec_and_test(&storm->running))
		complete(&storm->done);
	return 0;
}

static int storm_forker_fn(void *data)
{
	struct test_storm *storm = data;
	struct cow_context *root = storm->tree.mms[0].context;
	struct cow_context *context;
	unsigned int i;

	for (i = 0; i < STORM; i++) {
		context = cow_context_alloc(fake_mm(&storm->tree.mms[1]));
		if (!context)
			break;
		cow_context_fork(context, root);
		cow_context_detach(context);
		cow_context_release(context);
		if (!(i % 64))
			cond_resched();
	}
	atomic_add(i, &storm->forked);
	if (atomic_dec_and_test(&storm->running))
		complete(&storm->done);
	return 0;
}

/*
 * Two threads put contexts into the same place that live for a moment only: a
 * walk tends to be late for them.
 */
static void cow_context_storm(struct kunit *test)
{
	struct test_storm *storm;
	struct test_mm *root;

	storm = kunit_kzalloc(test, sizeof(*storm), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, storm);
	root = tree_init(test, &storm->tree, 2);
	init_completion(&storm->done);
	atomic_set(&storm->running, 3);
	kthread_run(storm_walker_fn, storm, "cow_context/w");
	kthread_run(storm_forker_fn, storm, "cow_context/0");
	kthread_run(storm_forker_fn, storm, "cow_context/1");
	wait_for_completion(&storm->done);

	kunit_info(test, "%lu walks\n", storm->walks);
	KUNIT_EXPECT_EQ(test, atomic_read(&storm->forked), 2 * STORM);
	KUNIT_EXPECT_FALSE(test, storm->dead);
	KUNIT_EXPECT_GT(test, storm->walks, 0);
	expect_alone(test, root->context);
	exit_mm(root);
}

#define FORKERS		2
#define WALKERS		2
#define FORKER_MMS	1500
#define FORKER_LIVE	24

/*
 * Each forker has a part of the tree to itself; walkers go through it all.  The
 * clock tells what a walk must have seen.  No test_mm is used twice.
 */
struct test_race {
	struct kunit *test;
	struct test_tree tree;
	atomic_long_t clock;
	unsigned int seed;
	unsigned int forkers;
	unsigned long walks;
	unsigned long visits;
	const char *error;
	atomic_t running;
	bool stop;
};

struct test_racer {
	struct test_race *race;
	struct rnd_state rnd;
	struct test_mm *mms;		/* a forker's; the first one is there */
	unsigned int nr;
	unsigned long *seen;		/* a walker's */
	unsigned long walks;
	unsigned long visits;
	struct completion done;
};

static void race_failed(struct test_race *race, const char *error)
{
	cmpxchg(&race->error, NULL, error);
}

static void race_pause(struct test_racer *r)
{
	u32 x = prandom_u32_state(&r->rnd) % 64;

	if (!x)
		schedule_timeout_uninterruptible(1);
	else if (x < 16)
		cond_resched();
}

static void race_exit(struct test_race *race, struct test_mm *mm)
{
	struct cow_context *context = mm->context;

	WRITE_ONCE(mm->dying, atomic_long_inc_return(&race->clock));
	cow_context_detach(context);
	/* So that walkers who take it for their top find it, or nothing */
	WRITE_ONCE(mm->state, TEST_MM_DETACHED);
	WRITE_ONCE(mm->context, NULL);
	cow_context_release(context);
}

static bool race_fork(struct test_race *race, struct test_mm *mm,
		      struct test_mm *parent)
{
	struct cow_context *context = cow_context_alloc(fake_mm(mm));

	if (!context)
		return false;
	mm->depth = parent->depth + 1;
	mm->parent = parent;
	mm->born = atomic_long_inc_return(&race->clock);
	WRITE_ONCE(mm->context, context);
	cow_context_fork(context, parent->context);
	/* A walk that begins later has a later time. */
	smp_store_release(&mm->linked, atomic_long_inc_return(&race->clock));
	return true;
}

static int forker_fn(void *data)
{
	struct test_racer *r = data;
	struct test_race *race = r->race;
	struct test_mm *live[FORKER_LIVE] = { r->mms };
	unsigned int nr_live = 1, i;

	while (r->nr < FORKER_MMS && !READ_ONCE(race->error)) {
		/* Rather fork from the newest and end the oldest: go deep. */
		i = prandom_u32_state(&r->rnd) % nr_live;
		if (prandom_u32_state(&r->rnd) % 2)
			i = nr_live - 1;
		if (nr_live < FORKER_LIVE &&
		    (nr_live == 1 || prandom_u32_state(&r->rnd) % 9 < 5)) {
			live[nr_live] = &r->mms[r->nr++];
			if (!race_fork(race, live[nr_live], live[i])) {
				race_failed(race, "no memory");
				break;
			}
			nr_live++;
		} else {
			i = prandom_u32_state(&r->rnd) % nr_live;
			if (prandom_u32_state(&r->rnd) % 2)
				i = 0;
			race_exit(race, live[i]);
			nr_live--;
			memmove(&live[i], &live[i + 1],
				(nr_live - i) * sizeof(*live));
		}
		race_pause(r);
	}
	while (nr_live)
		race_exit(race, live[--nr_live]);
	atomic_dec(&race->running);
	complete(&r->done);
	return 0;
}

/* Does @a come before @b in pre-order? */
static bool race_before(struct test_mm *a, struct test_mm *b)
{
	struct test_mm *b_end = b;

	if (a == b)
		return false;
	while (b->depth > a->depth)
		b = b->parent;
	if (a == b)
		return true;
	while (a->depth > b->depth)
		a = a->parent;
	if (a == b_end)
		return false;
	while (a->parent != b->parent) {
		a = a->parent;
		b = b->parent;
	}
	return a->born > b->born;
}

static void race_walk(struct test_racer *r, struct test_mm *top,
		      struct cow_context *context)
{
	struct test_race *race = r->race;
	struct test_tree *tree = &race->tree;
	DEFINE_COW_CONTEXT_WALK(walk, context, false);
	struct test_mm *mm, *last = NULL;
	unsigned long begin, end, linked, dying;
	unsigned int i;

	bitmap_zero(r->seen, tree->max);
	begin = atomic_long_inc_return(&race->clock);
	while ((context = cow_context_walk_next(&walk))) {
		mm = test_mm_of(context);
		if (mm < tree->mms || mm >= tree->mms + tree->max) {
			race_failed(race, "walk found a freed or dead context");
			break;
		}
		if (READ_ONCE(mm->context) != context)
			race_failed(race, "walk found somebody else's context");
		if (!is_in_subtree(mm, top))
			race_failed(race, "walk left the subtree");
		if (last && !race_before(last, mm))
			race_failed(race, "walk went backwards");
		race_pause(r);
		if (READ_ONCE(mm->state) != TEST_MM_LIVE)
			race_failed(race, "detached under the lock");
		__set_bit(mm - tree->mms, r->seen);
		last = mm;
		r->visits++;
	}
	cow_context_walk_end(&walk);
	end = atomic_long_inc_return(&race->clock);
	r->walks++;

	for (i = 0; i < tree->max; i++) {
		mm = &tree->mms[i];
		/* Pairs with race_fork(). */
		linked = smp_load_acquire(&mm->linked);
		if (!linked || linked > begin)
			continue;
		dying = READ_ONCE(mm->dying);
		if (dying && dying < end)
			continue;
		if (is_in_subtree(mm, top) && !test_bit(i, r->seen))
			race_failed(race, "walk missed a context");
	}
}

static int race_walker_fn(void *data)
{
	struct test_racer *r = data;
	struct test_race *race = r->race;
	struct test_tree *tree = &race->tree;
	struct cow_context *context;
	struct test_mm *top;

	while (atomic_read(&race->running) && !READ_ONCE(race->error)) {
		top = tree->mms;
		if (prandom_u32_state(&r->rnd) % 2)
			top += prandom_u32_state(&r->rnd) % tree->max;

		/* Pairs with race_fork(). */
		if (!smp_load_acquire(&top->linked)) {
			cond_resched();
			continue;
		}
		/* As from a folio that is mapped */
		rcu_read_lock();
		context = READ_ONCE(top->context);
		if (context && !cow_context_tryget(context))
			context = NULL;
		rcu_read_unlock();
		if (!context) {
			cond_resched();
			continue;
		}
		if (context->owner == context)
			race_walk(r, top, context);
		cow_context_put(context);
		race_pause(r);
	}
	complete(&r->done);
	return 0;
}

static void cow_context_race(struct kunit *test)
{
	struct test_racer *racers, *r;
	unsigned long walks = 0, visits = 0;
	struct test_race *race;
	struct test_mm *root;
	unsigned int i, s;

	race = kunit_kzalloc(test, sizeof(*race), GFP_KERNEL);
	racers = kunit_kcalloc(test, FORKERS + WALKERS, sizeof(*racers),
			       GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, race);
	KUNIT_ASSERT_NOT_NULL(test, racers);
	root = tree_init(test, &race->tree, 1 + FORKERS * FORKER_MMS);
	root->linked = atomic_long_inc_return(&race->clock);
	s = test_seed(test);

	for (i = 0; i < FORKERS + WALKERS; i++) {
		r = &racers[i];
		r->race = race;
		prandom_seed_state(&r->rnd, s + i);
		init_completion(&r->done);
		if (i < FORKERS) {
			r->mms = &race->tree.mms[1 + i * FORKER_MMS];
			KUNIT_ASSERT_TRUE(test, race_fork(race, r->mms, root));
			r->nr = 1;
		} else {
			r->seen = kunit_kcalloc(test,
						BITS_TO_LONGS(race->tree.max),
						sizeof(long), GFP_KERNEL);
			KUNIT_ASSERT_NOT_NULL(test, r->seen);
		}
	}
	atomic_set(&race->running, FORKERS);
	for (i = 0; i < FORKERS + WALKERS; i++)
		kthread_run(i < FORKERS ? forker_fn : race_walker_fn, &racers[i],
			    "cow_context/%u", i);
	for (i = 0; i < FORKERS + WALKERS; i++) {
		wait_for_completion(&racers[i].done);
		walks += racers[i].walks;
		visits += racers[i].visits;
	}
	kunit_info(test, "%lu walks visited %lu contexts\n", walks, visits);
	KUNIT_EXPECT_NULL_MSG(test, race->error, "%s", race->error);
	KUNIT_EXPECT_GT(test, walks, 0);
	expect_alone(test, root->context);
	exit_mm(root);
}

static struct kunit_case cow_context_test_cases[] = {
	KUNIT_CASE(cow_context_alone),
	KUNIT_CASE(cow_context_exit_orders),
	KUNIT_CASE(cow_context_failed_fork),
	KUNIT_CASE(cow_context_depth_limit),
	KUNIT_CASE(cow_context_walk_below_limit),
	KUNIT_CASE(cow_context_try_lock),
	KUNIT_CASE(cow_context_wait),
	KUNIT_CASE(cow_context_wait_detached),
	KUNIT_CASE(cow_context_dead_run),
	KUNIT_CASE(cow_context_gate_of_two),
	KUNIT_CASE(cow_context_gate_killed),
	KUNIT_CASE(cow_context_walk_holds),
	KUNIT_CASE(cow_context_walk_of_dead),
	KUNIT_CASE(cow_context_gate),
	KUNIT_CASE(cow_context_inherit),
	KUNIT_CASE_SLOW(cow_context_model),
	KUNIT_CASE_SLOW(cow_context_chain),
	KUNIT_CASE_SLOW(cow_context_comb),
	KUNIT_CASE_SLOW(cow_context_storm),
	KUNIT_CASE_SLOW(cow_context_race),
	{}
};

static struct kunit_suite cow_context_test_suite = {
	.name = "cow_context",
	.test_cases = cow_context_test_cases,
};

kunit_test_suite(cow_context_test_suite);

MODULE_DESCRIPTION("Tests for COW contexts");
MODULE_LICENSE("GPL");
