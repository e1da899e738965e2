/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A migration and a munmap() in flight, in one mm with one VMA and one folio in it.
 *
 *   Migrate  try_to_migrate() and remove_migration_ptes(): two walks with the folio
 *	      locked, each by cow_vma_iter_next() under the context's lock; then the folio
 *	      is unlocked, and the old one is freed
 *   Munmap   do_vmi_align_munmap(), where clearing mm_mt may fail, or the same for
 *	      MAP_FIXED, which leaves mm_mt alone: __mmap_prepare() and vms_clean_up_area()
 *
 * To hold: zapping meets no migration entry for a folio that is not locked; after the
 * migration no such entry is left; a walk comes to a VMA once, looks at no page tables
 * that are freed, at no VMA that is, and searches no list of VMAs that is gone.
 *
 * Left out: the descendants (see fork_walk.pml), moved VMAs (see mremap_back.pml), how a
 * VMA found in mm_mt under RCU is known not to be stale. Steps on the pte are under the
 * page table lock.
 */
/* protections: NO_PUBLISH NO_PUBLISH_LOCK NO_PUBLISH_BEFORE_CLEAR NO_WITHDRAW_ON_FAILURE */
/* protections: NO_REPLACE NO_ZAP_BEFORE_LEAVE NO_LEAVE_LOCK NO_LEAVE_BEFORE_FREE NO_LEAVE */

mtype = { NONE, MAPPED, MIGRATION };

mtype pte = MAPPED;
bool folio_locked;
bool reader, writer;	/* of the context's rwsem */
bool in_tree = true;	/* the VMA is in mm_mt */
bool in_list;		/* and in the munmap's own tree, mt_detach */
bool published;		/* context->unmapping points to that */
bool word = true;	/* the VMA's: it is in the index */
bool no_tables;		/* its page tables are freed */
bool no_vma;		/* and it is itself */

inline lock_write()	{ atomic { !reader && !writer -> writer = true } }
inline unlock_write()	{ writer = false }
inline lock_read()	{ atomic { !writer -> reader = true } }
inline unlock_read()	{ reader = false }

inline publish()
{
#ifdef NO_PUBLISH
	skip
#else
#ifndef NO_PUBLISH_LOCK
	lock_write();
#endif
	published = true;
#ifndef NO_PUBLISH_LOCK
	unlock_write()
#endif
#endif
}

inline leave_index()	/* unmap_leave_index() */
{
#ifdef NO_LEAVE
	skip
#else
#ifndef NO_LEAVE_LOCK
	lock_write();
#endif
	word = false;
	published = false;
#ifndef NO_LEAVE_LOCK
	unlock_write()
#endif
#endif
}

inline unmap_region()
{
#ifdef NO_ZAP_BEFORE_LEAVE
	leave_index();
#endif
	atomic { assert(pte != MIGRATION || folio_locked); pte = NONE };
#ifdef NO_LEAVE_BEFORE_FREE
	no_tables = true;
#endif
#ifndef NO_ZAP_BEFORE_LEAVE
	leave_index();
#endif
	no_tables = true
}

active proctype Munmap()	/* holds the mmap_lock for write */
{
	in_list = true;		/* vms_gather_munmap_vmas() */
	if
	:: true ->		/* munmap */
#ifdef NO_PUBLISH_BEFORE_CLEAR
		in_tree = false;
		publish();
#else
		publish();
		if
		:: in_tree = false
		:: true ->	/* no memory for that */
#ifndef NO_WITHDRAW_ON_FAILURE
			lock_write();
			published = false;
			unlock_write();
#endif
			in_list = false;
			goto out
		fi;
#endif
		unmap_region()
	:: true ->		/* MAP_FIXED */
		unmap_region();
		in_tree = false	/* the new one takes its place */
	fi;
	no_vma = true;		/* remove_vma(), RCU or not: a walk must not use it */
	in_list = false;
out:
	skip
}

inline visit(from, to)		/* rmap_one() */
{
	visits++;
	assert(!no_tables);
	assert(!no_vma);
	d_step {
		if
		:: pte == from -> pte = to
		:: else
		fi
	}
}

inline walk(from, to)
{
	visits = 0;
	lock_read();
	unmapping = published;	/* read once, cow_vma_iter_unmoved() */
	if
	:: unmapping ->
		assert(in_list);
		if
		:: word -> visit(from, to)
		:: else
		fi
	:: else
	fi;
#ifndef NO_REPLACE
	if
	:: unmapping
	:: else ->
#endif
		/* What mm_mt has is kept from being freed by the word alone. */
		if
		:: in_tree && word -> visit(from, to)
		:: else
		fi;
#ifndef NO_REPLACE
	fi;
#endif
	assert(visits <= 1);
	unlock_read()
}

active proctype Migrate()
{
	byte visits;
	bool unmapping;

	folio_locked = true;
	if
	:: pte == NONE -> goto out
	:: else
	fi;
	walk(MAPPED, MIGRATION);
	walk(MIGRATION, MAPPED);
	assert(pte != MIGRATION);
out:
	folio_locked = false
}
