/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A walk in an mm, and mremap() that moves a VMA away from where it was faulted in, and
 * back.
 *
 * The index has a VMA that is at home, where the folio's index says, in mm_mt, and one that
 * is away in context->moved. A walk looks into mm_mt first.
 *
 *   Mremap  move_vma() in turns: copy_vma() with cow_index_enter(), move_ptes() under
 *	     take_rmap_locks() (or move_hugetlb_page_tables()), and the munmap() of what is left:
 *	     unmap_leave_index(). A move may fail, and goes back again: then the new VMA
 *	     is unmapped.
 *   Walk    try_to_migrate(): cow_vma_iter_next() under the context's lock
 *
 * To hold: the walk does not miss the entry. It looks at no page tables that are freed, and
 * the interval tree is not changed while it looks into it.
 *
 * Left out: publication by munmap() (see restore_munmap.pml), VMAs that merge, fork (which
 * the mmap_lock keeps out).
 */
/* protections: NO_RWSEM_IN_MOVE NO_RWSEM_IN_ENTER NO_ENTER_BEFORE_MOVE NO_STAY_UNTIL_MOVED */
/* protections: NO_RWSEM_IN_LEAVE NO_LEAVE_BEFORE_FREE */

#define HOME 0
#define AWAY 1
#define MOVES 3

bool mapped[2];		/* the entry is here */
bool in_index[2];	/* there is a VMA here, and its word is set */
bool tables[2];		/* and it has page tables */
bool reader, writer;	/* of the context's rwsem */
bool migrated;		/* the entry is a migration entry */
bool in_moved;		/* the walk is in the interval tree */

inline lock_write()	{ atomic { !reader && !writer -> writer = true } }
inline unlock_write()	{ writer = false }

inline enter(where)	/* cow_index_enter() */
{
	if
	:: where == HOME -> in_index[where] = true	/* needs no lock: nothing is mapped */
	:: else ->
#ifndef NO_RWSEM_IN_ENTER
		lock_write();
#endif
		atomic { assert(!in_moved); in_index[where] = true };
#ifndef NO_RWSEM_IN_ENTER
		unlock_write()
#endif
	fi
}

inline leave(where)	/* unmap_leave_index() */
{
#ifndef NO_RWSEM_IN_LEAVE
	lock_write();
#endif
	atomic { assert(where == HOME || !in_moved); in_index[where] = false };
#ifndef NO_RWSEM_IN_LEAVE
	unlock_write()
#endif
}

inline move(src, dst)	/* move_ptes() */
{
#ifndef NO_RWSEM_IN_MOVE
	lock_write();
#endif
	/* both page table locks: the walk sees it here or there */
	d_step { mapped[src] = false; mapped[dst] = true };
#ifndef NO_RWSEM_IN_MOVE
	unlock_write()
#endif
}

active proctype Mremap()
{
	byte moves, at, to;

	atomic { in_index[HOME] = true; tables[HOME] = true; mapped[HOME] = true };
	do
	:: moves < MOVES ->
		moves++;
		to = 1 - at;
		tables[to] = true;	/* has them, or could get them any time */
#ifndef NO_ENTER_BEFORE_MOVE
		enter(to);
#endif
#ifdef NO_STAY_UNTIL_MOVED
		leave(at);
#endif
		move(at, to);
		if
		:: at = to
		:: move(to, at)		/* it failed for the rest */
		fi;
#ifdef NO_ENTER_BEFORE_MOVE
		enter(to);
#endif
		/* munmap of the one where the entry is not */
#ifdef NO_LEAVE_BEFORE_FREE
		tables[1 - at] = false;
#endif
#ifndef NO_STAY_UNTIL_MOVED
		leave(1 - at);
#endif
		tables[1 - at] = false
	:: break
	od
}

inline visit(where)	/* page_vma_mapped_walk() and try_to_migrate_one() */
{
	if
	:: in_index[where] ->
		assert(tables[where]);
		d_step {
			if
			:: mapped[where] -> migrated = true
			:: else
			fi
		}
	:: else
	fi
}

active proctype Walk()
{
	(mapped[HOME] || mapped[AWAY]);
	atomic { !writer -> reader = true };
	visit(HOME);
	in_moved = true;
	visit(AWAY);
	in_moved = false;
	assert(migrated);
	reader = false
}
