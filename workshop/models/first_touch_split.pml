/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The first touch of a VMA, under its VMA lock, while the VMA is split; then fork(); and a
 * walk for the folio.
 *
 * VMA OLD has the pages 0 and 1. The split leaves 0 in it, and 1 is in NEW then. Page 1 is
 * touched at any time. The child has the VMAs and the entry in the same places.
 *
 *   Touch  lock_vma_under_rcu(), vma_set_anon(), and the entry is set
 *   Mmap   __split_vma() with vma_prepare() to vma_complete(); dup_mmap() with
 *	    cow_index_enter(), and copy_page_range() with vma_needs_copy()
 *   Walk   starts when the folio is mapped, and unmaps it: parent, then child
 *
 * To hold: what is mapped when fork() begins is mapped in the child, if the walk has not
 * been there before; the walk misses no entry; a VMA in which something is mapped has its
 * word set.
 *
 * Left out: VMAs that were moved, exit, the fault that takes the mmap_lock instead, the
 * link of the child before the copy (see fork_walk.pml), reuse of VMAs.
 */
/* protections: NO_START_WRITE NO_WORD_BEFORE_ENTRY NO_RWSEM_IN_SPLIT NO_WORD_IN_SPLIT */
/* protections: NO_RECHECK_RANGE NO_START_WRITE_IN_FORK NO_WORD_BEFORE_COPY NO_WORD_IN_FORK */

#define OLD 0
#define NEW 1

bool word[2];		/* of the parent's VMAs */
bool child_word;		/* of the child's VMA for page 1 */
byte tree = OLD;	/* the VMA that the parent's mm_mt has for page 1 */
bool shrunk;		/* OLD does not reach to page 1 any more */
bool vma_read[2], vma_write[2];	/* VMA locks */
bool reader, writer;	/* of the parent's context */
bool pte, child_pte;	/* entries for page 1 */
bool unmapped;		/* the parent's, by the walk */

#define covers(vma) ((vma) == NEW || !shrunk)

inline start_write(vma)	{ atomic { !vma_read[vma] -> vma_write[vma] = true } }
inline end_write()	{ d_step { vma_write[OLD] = false; vma_write[NEW] = false } }

active proctype Touch()
{
	byte vma;

	do			/* lock_vma_under_rcu() */
	:: vma = tree;
		if
		:: atomic { !vma_write[vma] -> vma_read[vma] = true };
			if
#ifndef NO_RECHECK_RANGE
			:: !covers(vma) -> vma_read[vma] = false
#endif
			:: covers(vma) -> break
#ifdef NO_RECHECK_RANGE
			:: else -> break
#endif
			fi
		:: vma_write[vma]
		fi
	od;
#ifndef NO_WORD_BEFORE_ENTRY
	word[vma] = true;	/* vma_set_anon() */
#endif
	pte = true;
#ifdef NO_WORD_BEFORE_ENTRY
	word[vma] = true;
#endif
	vma_read[vma] = false
}

inline split()			/* __split_vma() */
{
#ifdef NO_START_WRITE
	has_anon = word[OLD];
#endif
	start_write(OLD);
#ifndef NO_START_WRITE
	has_anon = word[OLD];
#endif
	vma_write[NEW] = true;
#ifndef NO_RWSEM_IN_SPLIT
	if			/* vma_prepare() */
	:: has_anon -> atomic { !reader -> writer = true }
	:: else
	fi;
#endif
	shrunk = true;
	tree = NEW;		/* vma_complete() */
#ifndef NO_WORD_IN_SPLIT
	if
	:: has_anon -> word[NEW] = true
	:: else
	fi;
#endif
	writer = false;
	end_write()
}

inline fork()			/* dup_mmap() */
{
	had_pte = pte;
	from = tree;
#ifndef NO_START_WRITE_IN_FORK
	start_write(from);
#endif
	has_anon = word[from];
#ifndef NO_WORD_BEFORE_COPY
#ifndef NO_WORD_IN_FORK
	if
	:: has_anon -> child_word = true	/* cow_index_enter() */
	:: else
	fi;
#endif
#endif
	if
	:: word[from] -> child_pte = pte	/* vma_needs_copy(), copy_page_range() */
	:: else
	fi;
#ifdef NO_WORD_BEFORE_COPY
	child_word = has_anon;
#endif
	end_write()
}

active proctype Mmap()		/* holds the mmap_lock for write, each time */
{
	bool has_anon, had_pte;
	byte from;

	if
	:: split()
	:: true
	fi;
	fork();
	assert(!had_pte || child_pte || unmapped);
	assert(!child_pte || child_word)
}

active proctype Walk()
{
	byte vma;

	pte ->			/* folio_mapped() */
	atomic { !writer -> reader = true };
	vma = tree;		/* cow_vma_iter_unmoved() */
	if
	:: word[vma] && covers(vma) -> d_step { pte = false; unmapped = true }
	:: else
	fi;
	reader = false;

	/* The child is empty until fork comes to the copy. */
	if
	:: child_word -> child_pte = false
	:: else
	fi;
	assert(!pte && !child_pte)
}
