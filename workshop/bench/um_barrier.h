/* SPDX-License-Identifier: GPL-2.0 */
/*
 * User-mode Linux has fences where the CPU needs none: lfence for smp_rmb(), mfence for
 * smp_load_acquire().  What make bench-native builds orders memory as x86 does.
 */
#ifndef UM_BARRIER_H
#define UM_BARRIER_H

#define __smp_mb()	__asm__ __volatile__("lock addl $0,-4(%%rsp)" : : : "memory", "cc")
#define __smp_rmb()	__asm__ __volatile__("" : : : "memory")
#define __smp_wmb()	__asm__ __volatile__("" : : : "memory")
#define __smp_mb__before_atomic()	do { } while (0)
#define __smp_mb__after_atomic()	do { } while (0)

#define __smp_store_release(p, v)	\
do {					\
	__smp_wmb();			\
	WRITE_ONCE(*(p), v);		\
} while (0)

#define __smp_load_acquire(p)		\
({					\
	__typeof__(*(p)) ___v = READ_ONCE(*(p));	\
	__smp_rmb();			\
	___v;				\
})

#endif
