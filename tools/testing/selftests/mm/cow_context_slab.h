/* SPDX-License-Identifier: GPL-2.0 */
#ifndef COW_CONTEXT_SLAB_H
#define COW_CONTEXT_SLAB_H

#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/*
 * Does the cache keep freed objects in sheaves, where they count as in use?  Shrinking
 * it empties these, and what others free from then on is in them again.  Without them,
 * as with slab_debug=F,<cache>, the number of objects is exact.
 */
static inline bool slab_has_sheaves(const char *cache)
{
	unsigned int capacity = 0;
	char path[128];
	FILE *file;

	snprintf(path, sizeof(path), "/sys/kernel/slab/%s/sheaf_capacity", cache);
	file = fopen(path, "r");
	if (!file)
		return false;
	if (fscanf(file, "%u", &capacity) != 1)
		capacity = 0;
	fclose(file);
	return capacity;
}

/* KASAN keeps freed objects for a while, which count as in use, too. */
static inline void shrink_slab(const char *cache)
{
	char path[128];
	FILE *file;

	snprintf(path, sizeof(path), "/sys/kernel/slab/%s/shrink", cache);
	file = fopen(path, "w");
	if (!file)
		return;
	fputs("1", file);
	fclose(file);
}

/* The number of objects of a slab cache in use, or -1 */
static inline long slab_objects(const char *cache)
{
	char line[256], name[64];
	long count = -1, active;
	FILE *slabinfo;

	slabinfo = fopen("/proc/slabinfo", "r");
	if (!slabinfo)
		return -1;
	while (fgets(line, sizeof(line), slabinfo)) {
		if (sscanf(line, "%63s %ld", name, &active) == 2 &&
		    !strcmp(name, cache))
			count = active;
	}
	fclose(slabinfo);
	return count;
}

/* Why objects of the cache cannot be counted, or NULL */
static inline const char *slab_not_counted(const char *cache)
{
	char path[128];

	if (geteuid())
		return "needs root, to count objects of a slab cache";
	if (slab_objects(cache) >= 0)
		return NULL;
	snprintf(path, sizeof(path), "/sys/kernel/slab/%s", cache);
	if (!access(path, F_OK))
		return "needs slab_nomerge, as a slab cache is merged with others";
	return "needs a kernel that has the slab cache, and SLUB_DEBUG";
}

/*
 * So many objects may be left after @rounds that are no leak: where the number is not
 * exact, which is so where others use the cache, too.
 */
static inline long slab_slack(const char *cache, long rounds)
{
	return slab_has_sheaves(cache) ? rounds / 100 : 0;
}

/*
 * An idle CPU may have kept the mm of the process that ran there last, and with
 * it the contexts of all that it was forked from: give each CPU this one's.
 */
static inline void visit_cpus(void)
{
	int cpu, nr_cpus = sysconf(_SC_NPROCESSORS_CONF);
	cpu_set_t all, one;

	sched_getaffinity(0, sizeof(all), &all);
	for (cpu = 0; cpu < nr_cpus; cpu++) {
		CPU_ZERO(&one);
		CPU_SET(cpu, &one);
		sched_setaffinity(0, sizeof(one), &one);
	}
	sched_setaffinity(0, sizeof(all), &all);
}

#endif
