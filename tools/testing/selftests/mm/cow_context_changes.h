/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What a test changes of the machine, with RUN_DESTRUCTIVE=true only, as run_vmtests.sh -d
 * has it: settings, the state of memory blocks, swap, and pages that are poisoned.  It is
 * put back when the test ends, or a signal ends it.
 *
 * What there was before is in memory that all processes of a test share, so that the one
 * that is left puts it back.  Each kind of it is changed by one process at a time.
 */
#ifndef COW_CONTEXT_CHANGES_H
#define COW_CONTEXT_CHANGES_H

#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/swap.h>
#include <sys/wait.h>

/* And vm_util.h, which has no guard, before */
#include "kselftest.h"

#define MAX_SETTINGS	128
#define MAX_BLOCKS	256
#define MAX_SWAPS	16
#define MAX_POISONED	256

#define NEEDS_DESTRUCTIVE	"needs root and RUN_DESTRUCTIVE=true"

#ifndef MADV_SOFT_OFFLINE
#define MADV_SOFT_OFFLINE	101
#endif

#define COW_CHECK	"/sys/kernel/debug/cow_context/check"

struct changes {
	pid_t owner;	/* who puts it back in the end */
	pid_t group;	/* of the processes that change something */
	int nr_settings;
	struct {
		char path[128];
		char value[64];
	} settings[MAX_SETTINGS];
	int nr_swaps;
	struct {
		char path[256];
		int flags;
	} swaps[MAX_SWAPS];
	char blocks[MAX_BLOCKS];	/* those that were offlined: 'm' or 'k', for the zone */
	bool poisons;
	int nr_poisoned;		/* before, by others */
	unsigned long poisoned[MAX_POISONED];
	pid_t niced;
	int nice;
};

static struct changes *changes;

/* What a file has, without its newline; of several words the one that is marked */
static inline bool read_setting(const char *path, char *value, size_t size)
{
	char text[256], *begin = text, *end;

	if (!read_file(path, text, sizeof(text)))
		return false;
	end = strchr(text, ']');
	if (strchr(text, '[') && end)
		begin = strchr(text, '[') + 1;
	else
		end = strchrnul(text, '\n');
	*end = 0;
	return (size_t)snprintf(value, size, "%s", begin) < size;
}

/* What the kernel's own check has counted when it was last run, -1 if it has none */
static inline long checked(const char *what)
{
	FILE *check = fopen(COW_CHECK, "r");
	char name[32];
	long value, found = -1;

	if (!check)
		return -1;
	while (fscanf(check, "%31s %ld%*[^\n]", name, &value) == 2)
		if (!strcmp(name, what))
			found = value;
	fclose(check);
	return found;
}

static inline bool write_setting(const char *path, const char *value)
{
	int fd = open(path, O_WRONLY), err;
	bool written;

	if (fd < 0)
		return false;
	written = write(fd, value, strlen(value)) == (ssize_t)strlen(value);
	err = errno;
	close(fd);
	errno = err;
	return written;
}

/* For who writes it otherwise */
static inline bool remember_setting(const char *path)
{
	int nr = changes->nr_settings;

	for (int i = 0; i < nr; i++)
		if (!strcmp(changes->settings[i].path, path))
			return true;
	if (nr == MAX_SETTINGS || strlen(path) >= sizeof(changes->settings[nr].path) ||
	    !read_setting(path, changes->settings[nr].value, sizeof(changes->settings[nr].value)))
		return false;
	strcpy(changes->settings[nr].path, path);
	changes->nr_settings++;
	return true;
}

static inline bool change_setting(const char *path, const char *value)
{
	return remember_setting(path) && write_setting(path, value);
}

static inline bool change_number(const char *path, unsigned long value)
{
	char text[32];

	snprintf(text, sizeof(text), "%lu", value);
	return change_setting(path, text);
}

/* A process other than this one and its children */
static inline void change_nice(pid_t pid, int nice)
{
	changes->nice = getpriority(PRIO_PROCESS, pid);
	changes->niced = pid;
	setpriority(PRIO_PROCESS, pid, nice);
}

static inline void online_block(int nr)
{
	char path[64];

	snprintf(path, sizeof(path), "/sys/devices/system/memory/memory%d/state", nr);
	if (write_setting(path, changes->blocks[nr] == 'm' ? "online_movable" : "online_kernel"))
		changes->blocks[nr] = 0;
}

/* What an online block says, and its node */
static inline bool zone_of_block(int nr, char *zone, size_t size)
{
	char path[80], name[32];

	for (int node = 0; node < 64; node++) {
		snprintf(path, sizeof(path), "/sys/devices/system/node/node%d/memory%d/valid_zones",
			 node, nr);
		if (read_setting(path, name, sizeof(name)))
			return (size_t)snprintf(zone, size, "%s %d", name, node) < size;
	}
	return false;
}

/* At the edge of one of the lower zones, a block comes back in another one. */
static inline bool comes_back(int nr, const char *zone)
{
	char other[64];

	return !strncmp(zone, "Normal ", 7) || !strncmp(zone, "Movable ", 8) ||
	       (zone_of_block(nr - 1, other, sizeof(other)) && !strcmp(zone, other) &&
		zone_of_block(nr + 1, other, sizeof(other)) && !strcmp(zone, other));
}

/* What the kernel computes anew when there is other memory, and huge pages that it moves */
static inline void remember_memory(void)
{
	glob_t pools;

	remember_setting("/proc/sys/vm/user_reserve_kbytes");
	remember_setting("/proc/sys/vm/admin_reserve_kbytes");
	remember_setting("/proc/sys/vm/min_free_kbytes");
	if (glob("/sys/devices/system/node/node*/hugepages/*/nr_hugepages", 0, NULL, &pools))
		return;
	for (size_t i = 0; i < pools.gl_pathc; i++)
		remember_setting(pools.gl_pathv[i]);
	globfree(&pools);
}

/* Fails with EINVAL where there is no such block, or none that would be as it was. */
static inline bool offline_block(int nr)
{
	char path[64], state[16], zone[64];
	int err;

	snprintf(path, sizeof(path), "/sys/devices/system/memory/memory%d/state", nr);
	if (!read_setting(path, state, sizeof(state)) || strcmp(state, "online") ||
	    !zone_of_block(nr, zone, sizeof(zone)) || !comes_back(nr, zone)) {
		errno = EINVAL;
		return false;
	}
	remember_memory();
	changes->blocks[nr] = zone[0] == 'M' ? 'm' : 'k';
	if (write_setting(path, "offline"))
		return true;
	err = errno;
	changes->blocks[nr] = 0;
	errno = err;
	return false;
}

/* As /proc/swaps has it: spaces are \040 there. */
static inline bool parse_swap(const char *line, char *path, int *flags)
{
	char text[256];
	int priority;

	if (sscanf(line, "%255s %*s %*s %*s %d", text, &priority) != 2 || text[0] != '/')
		return false;
	for (char *from = text; *from; path++) {
		if (from[0] == '\\' && strlen(from) > 3) {
			*path = strtoul((char[]){ from[1], from[2], from[3], 0 }, NULL, 8);
			from += 4;
		} else {
			*path = *from++;
		}
	}
	*path = 0;
	/* Those below 0 are the kernel's to give. */
	*flags = priority < 0 ? 0 : SWAP_FLAG_PREFER | (priority & SWAP_FLAG_PRIO_MASK);
	return true;
}

static inline bool is_swap(const char *path)
{
	FILE *swaps = fopen("/proc/swaps", "r");
	char line[512], other[256];
	bool found = false;
	int flags;

	while (swaps && fgets(line, sizeof(line), swaps))
		found |= parse_swap(line, other, &flags) && !strcmp(path, other);
	if (swaps)
		fclose(swaps);
	return found;
}

/*
 * Turns swap off, by which all that is in it is read, and on again, where it can; how
 * often?  Whether it discards is not to be seen, and is lost.
 */
static inline unsigned long swap_off_and_on(void)
{
	FILE *swaps = fopen("/proc/swaps", "r");
	unsigned long nr = 0;
	char line[512];

	changes->nr_swaps = 0;
	while (swaps && changes->nr_swaps < MAX_SWAPS && fgets(line, sizeof(line), swaps))
		changes->nr_swaps += parse_swap(line, changes->swaps[changes->nr_swaps].path,
						&changes->swaps[changes->nr_swaps].flags);
	if (swaps)
		fclose(swaps);
	for (int i = 0; i < changes->nr_swaps; i++)
		nr += !swapoff(changes->swaps[i].path) &&
		      !swapon(changes->swaps[i].path, changes->swaps[i].flags);
	return nr;
}

/* The pages that are poisoned, for which all of memory is looked at */
static inline int poisoned_pages(unsigned long *pfns, int max)
{
	int fd = open("/proc/kpageflags", O_RDONLY), nr = 0;
	unsigned long pfn = 0;
	uint64_t flags[512];
	ssize_t size;

	while (fd >= 0 && (size = read(fd, flags, sizeof(flags))) > 0)
		for (size_t i = 0; i < size / sizeof(flags[0]); i++, pfn++)
			if (flags[i] & KPF_HWPOISON && nr < max)
				pfns[nr++] = pfn;
	if (fd >= 0)
		close(fd);
	return nr;
}

static inline bool nothing_poisoned(void)
{
	unsigned long size;

	return get_hardware_corrupted_size(&size) || !size;
}

/* Before pages are poisoned: can they be given back, by unpoison_memory()? */
static inline bool may_poison(void)
{
	if (access("/sys/kernel/debug/hwpoison/unpoison-pfn", W_OK))
		return false;
	if (!changes->poisons && !nothing_poisoned())
		changes->nr_poisoned = poisoned_pages(changes->poisoned, MAX_POISONED);
	changes->poisons = true;
	return changes->nr_poisoned < MAX_POISONED;
}

/* Whatever page it was in the end that was poisoned: it may have been moved before. */
static inline void heal(void)
{
	unsigned long pfns[2 * MAX_POISONED];
	int nr = 0;

	if (changes->poisons && !nothing_poisoned())
		nr = poisoned_pages(pfns, 2 * MAX_POISONED);
	for (int i = 0; i < nr; i++) {
		bool was = false;

		for (int j = 0; j < changes->nr_poisoned; j++)
			was |= changes->poisoned[j] == pfns[i];
		if (!was && unpoison_memory(pfns[i]))
			ksft_print_msg("page %#lx stays poisoned\n", pfns[i]);
	}
	changes->poisons = false;
	changes->nr_poisoned = 0;
}

/* Puts all of it back that is not what it was. */
static inline void put_back(void)
{
	char value[64];

	/* Those who change it, and are not this one's, come to their end first. */
	if (changes->group && changes->group != getpgrp()) {
		kill(-changes->group, SIGKILL);
		while (waitpid(-changes->group, NULL, 0) > 0)
			;
	}
	changes->group = 0;

	heal();
	for (int nr = 0; nr < MAX_BLOCKS; nr++)
		if (changes->blocks[nr])
			online_block(nr);
	memset(changes->blocks, 0, sizeof(changes->blocks));
	for (int i = 0; i < changes->nr_swaps; i++)
		if (!is_swap(changes->swaps[i].path) &&
		    swapon(changes->swaps[i].path, changes->swaps[i].flags))
			ksft_print_msg("swapon %s: %s\n", changes->swaps[i].path, strerror(errno));
	changes->nr_swaps = 0;
	for (int i = 0; i < changes->nr_settings; i++)
		if (read_setting(changes->settings[i].path, value, sizeof(value)) &&
		    strcmp(value, changes->settings[i].value) &&
		    !write_setting(changes->settings[i].path, changes->settings[i].value))
			ksft_print_msg("%s is %s, and was %s\n", changes->settings[i].path, value,
				       changes->settings[i].value);
	changes->nr_settings = 0;
	if (changes->niced)
		setpriority(PRIO_PROCESS, changes->niced, changes->nice);
	changes->niced = 0;
}

/* Asked before anything is changed */
static inline bool may_change(void)
{
	const char *destructive = getenv("RUN_DESTRUCTIVE");

	if (geteuid() || !destructive || strcmp(destructive, "true"))
		return false;
	changes->group = getpgrp();
	return true;
}

static inline void put_back_at_exit(void)
{
	if (getpid() == changes->owner)
		put_back();
}

static inline void put_back_on_signal(int signal)
{
	put_back_at_exit();
	raise(signal);
}

/*
 * To be called first, with memory that is shared; @handler is for signals that end a
 * program, or NULL.
 */
static inline void begin_changes(struct changes *memory, void (*handler)(int))
{
	struct sigaction action = { .sa_handler = handler ?: put_back_on_signal,
				    .sa_flags = handler ? 0 : SA_RESETHAND };
	static const int signals[] = { SIGHUP, SIGINT, SIGQUIT, SIGTERM };

	if (memory == MAP_FAILED)
		ksft_exit_fail_perror("mmap");
	changes = memory;
	changes->owner = getpid();
	/* Processes whose parent was killed are this one's. */
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	atexit(put_back_at_exit);
	for (size_t i = 0; i < ARRAY_SIZE(signals); i++)
		sigaction(signals[i], &action, NULL);
}

#endif
