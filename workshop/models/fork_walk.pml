/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A walk of the reverse map through a fork tree whose processes fork and exit.
 *
 * B was forked from A and owns a folio. One walk, with the folio locked, turns all
 * entries for it into migration entries, while B and all that are forked from it go on
 * forking and exit; A lives for ever, and may fork as well.
 *
 *   Mm	   fork	  dup_mmap(): cow_context_fork(), copy_page_range()
 *	   exit	  exit_mmap(): unmap_vmas(), cow_context_detach(), free_pgtables();
 *		  __mmdrop(): cow_context_put(). Also a dup_mmap() that fails, and, as
 *		  a process may stop for ever after any step, a munmap().
 *   Walk  folio_get_cow_context(), rmap_walk_anon(), cow_context_walk_next()
 *
 * To hold: at its end the walk has missed no entry. It looks at no page tables that are
 * freed, and at no context that is.
 *
 * Left out: VMAs (see the other models), memory ordering (see litmus/), walks that end
 * early (cow_context_walk_end()), cond_resched() in long walks (as where a trylock fails),
 * reuse of freed contexts (to touch one is an error already). Steps on a pte are under the
 * page table lock. A trylock may fail at any time, as it does when others wait.
 */
/* protections: NO_LINK_BEFORE_COPY NO_LINK_BEHIND_PARENT NO_PARENT_FIRST */
/* protections: NO_ZAP_BEFORE_DETACH NO_DETACH_BEFORE_FREE NO_DETACH_LOCK NO_RECHECK */
/* protections: NO_PARENT_REF NO_STAY_IN_LIST NO_GRACE_PERIOD NO_PIN NO_TRYGET NO_RCU_BEFORE_UP */
/* variants: MAX_DEPTH=1 */

#ifndef MAX_DEPTH		/* COW_CONTEXT_MAX_DEPTH */
#define MAX_DEPTH 32
#endif

#define N 4			/* so many contexts there can be */
#define A 0
#define B 1
#define NOBODY N

mtype = { NONE, MAPPED, MIGRATION };

typedef context {
	bool mm;
	bool reader;		/* holds the rwsem; there is but one walk */
	byte next, prev;
	byte depth, parent, owner, refs;
	bool pending, freed;	/* by kfree_rcu(): waits for a grace period, or is over */
	mtype pte;		/* the mm's entry for the folio */
	bool no_tables		/* the mm's page tables are freed */
};
context c[N];
byte nr = 2;			/* contexts so far */
bool rcu;			/* the walk is in an RCU read section */
byte i;

#define use(x) assert(!c[x].freed)

inline kfree_rcu(x)
{
#ifdef NO_GRACE_PERIOD
	c[x].freed = true
#else
	if
	:: rcu -> c[x].pending = true
	:: else -> c[x].freed = true
	fi
#endif
}

inline rcu_read_unlock()
{
	d_step {
		rcu = false;
		i = 0;
		do
		:: i < N && c[i].pending -> c[i].pending = false; c[i].freed = true; i++
		:: i < N && !c[i].pending -> i++
		:: i == N -> break
		od;
		i = 0
	}
}

inline list_del_rcu(x)		/* x keeps its next pointer */
{
	c[c[x].prev].next = c[x].next;
	c[c[x].next].prev = c[x].prev
}

inline put(x)			/* cow_context_put() */
{
	drop = x;
	do
	:: d_step {
		drop != NOBODY && c[drop].refs > 1 ->
		use(drop);
		c[drop].refs--;
		drop = NOBODY
	   }
	:: d_step {		/* the last: from here on nobody gets another */
		drop != NOBODY && c[drop].refs == 1 ->
		use(drop);
		c[drop].refs = 0
	   }
	:: d_step {
		drop != NOBODY && c[drop].refs == 0 ->
#ifndef NO_STAY_IN_LIST
		if
		:: c[drop].parent != NOBODY -> list_del_rcu(drop)
		:: else
		fi;
#endif
		kfree_rcu(drop);
		drop = c[drop].parent
	   }
	:: drop == NOBODY -> break
	od
}

inline link(child, me)		/* cow_context_fork() */
{
	c[child].depth = c[me].depth + 1;
	if
	:: c[child].depth <= MAX_DEPTH ->
		c[child].owner = child;
		c[child].parent = me
	:: else ->
		c[child].owner = c[me].owner;
		c[child].parent = c[me].owner
	fi;
#ifdef NO_PARENT_REF
	c[child].parent = NOBODY;
#else
	c[c[child].parent].refs++;
#endif
#ifdef NO_LINK_BEHIND_PARENT
	c[child].prev = c[A].prev;
#else
	c[child].prev = me;
#endif
	c[child].next = c[c[child].prev].next;
	c[c[child].next].prev = child;
	c[c[child].prev].next = child
}

proctype Mm(byte me)
{
	byte child = NOBODY, drop = NOBODY;

end:	do
	:: atomic {
		nr < N ->
		child = nr;
		nr++;
		c[child].mm = true;
		c[child].refs = 1;
#ifndef NO_LINK_BEFORE_COPY
		link(child, me)
#else
		c[child].pte = c[me].pte
#endif
	   };
	   atomic {
#ifndef NO_LINK_BEFORE_COPY
		c[child].pte = c[me].pte;
#else
		link(child, me);
#endif
		run Mm(child);
		child = NOBODY
	   }
	:: me != A -> break
	od;

#ifdef NO_DETACH_BEFORE_FREE
	c[me].no_tables = true;
#endif
#ifndef NO_ZAP_BEFORE_DETACH
	c[me].pte = NONE;
#endif
	/* cow_context_detach(): waits for the walk to leave */
#ifdef NO_DETACH_LOCK
	c[me].mm = false;
#else
	atomic { !c[me].reader -> c[me].mm = false };
#endif
#ifdef NO_ZAP_BEFORE_DETACH
	c[me].pte = NONE;
#endif
#ifndef NO_DETACH_BEFORE_FREE
	c[me].no_tables = true;
#endif
#ifdef NO_STAY_IN_LIST
	d_step { list_del_rcu(me) };
#endif
	put(me)
}

inline down_read(x)
{
	d_step { use(x); c[x].reader = true }
}

inline up_read(x)
{
	c[x].reader = false
}

inline handle(x)		/* try_to_migrate_one(), under the page table lock */
{
	d_step {
		assert(!c[x].no_tables);
		if
		:: c[x].pte == MAPPED -> c[x].pte = MIGRATION
		:: else
		fi
	}
}

#define mapped(x) (c[x].pte == MAPPED)
#define any_mapped (mapped(0) || mapped(1) || mapped(2) || mapped(3))	/* N of them */

proctype Walk()
{
	byte at = B, drop = NOBODY;
	bool yes;

	/* folio_get_cow_context() */
	rcu = true;
	if
	:: any_mapped
	:: else -> goto out
	fi;
#ifndef NO_PIN
	d_step { use(B); yes = c[B].refs > 0; c[B].refs = c[B].refs + yes };
	if
	:: !yes -> assert(!any_mapped); goto out
	:: else
	fi;
#endif
	rcu_read_unlock();

	rcu = true;
	do	/* cow_context_walk_next() */
	:: true ->
		d_step { use(at); yes = c[at].mm };
		if
		:: !yes
		:: yes ->	/* the trylock works */
			down_read(at);
			if
#ifndef NO_RECHECK
			:: !c[at].mm -> up_read(at)
			:: else ->
#else
			:: true ->
#endif
				rcu_read_unlock();
				goto found
			fi
		:: yes ->	/* it does not */
#ifndef NO_TRYGET
			d_step { use(at); yes = c[at].refs > 0; c[at].refs = c[at].refs + yes };
#endif
			if
			:: !yes
			:: else ->
				rcu_read_unlock();
				down_read(at);
				if
				:: c[at].mm ->
#ifndef NO_TRYGET
					put(at);
#endif
					goto found
				:: else ->
					rcu = true;
					up_read(at);
#ifndef NO_TRYGET
					put(at)
#endif
				fi
			fi
		fi;

step:		/* cow_context_step() */
		atomic { use(at); at = c[at].next };
		d_step { use(at); use(B); yes = c[at].depth > c[B].depth };
		if
		:: !yes -> break
		:: else
		fi
	od;
	goto done;

found:
#ifdef NO_PARENT_FIRST
	if
	:: at != B -> handle(at)
	:: else		/* later */
	fi;
#else
	handle(at);
#endif
#ifdef NO_RCU_BEFORE_UP
	up_read(at);
	rcu = true;
#else
	rcu = true;
	up_read(at);
#endif
	goto step;

done:
#ifdef NO_PARENT_FIRST
	d_step {
		if
		:: c[B].mm -> handle(B)
		:: else
		fi
	};
#endif
	assert(!any_mapped);
	rcu_read_unlock();
#ifndef NO_PIN
	put(B);
#endif
out:
	rcu_read_unlock()
}

init
{
	atomic {
		do
		:: i < N -> c[i].pte = NONE; c[i].parent = NOBODY; i++
		:: i == N -> break
		od;
		i = 0;
		c[A].mm = true;
		c[A].refs = 1;
		c[A].owner = A;
		c[B].mm = true;
		c[B].refs = 1;
		c[B].pte = MAPPED;
		link(B, A);
		run Mm(A);
		run Mm(B);
		run Walk()
	}
}
