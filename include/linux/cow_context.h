/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _LINUX_COW_CONTEXT_H
#define _LINUX_COW_CONTEXT_H

#include <linux/init.h>

struct cow_context;
struct mm_struct;

/*
 * What the life of an mm_struct needs of its cow_context.  All else is between
 * the files of mm/, see mm/cow_context.h.
 */
#ifdef CONFIG_MMU
void __init cow_context_init(void);
struct cow_context *cow_context_alloc(struct mm_struct *mm);
void cow_context_release(struct cow_context *context);
int cow_context_wait_for_walks(struct cow_context *context);
#else
static inline void cow_context_init(void)
{
}
#endif

#endif /* _LINUX_COW_CONTEXT_H */
