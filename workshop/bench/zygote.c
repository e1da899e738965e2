// SPDX-License-Identifier: GPL-2.0
/*
 * A tree of processes like that of a phone: a zygote with 600 VMAs that have memory, and 60
 * apps forked from it, each of which maps 200 VMAs more, splits each of them in three, and
 * touches what it has. Says "ready", and ends with its standard input.
 */
#include "cost.h"

#define VMAS	600
#define APPS	60
#define MORE	200
#define PAGES	6L

static void map_more(char *old, int app)
{
	(void)app;
	for (int i = 0; i < VMAS; i += 2)
		old[i * PAGE] = 2;
	for (int i = 0; i < MORE; i++) {
		/* One page in front, so that nothing merges */
		char *p = map(PAGES + 1) + PAGE;

		touch(p, 0, PAGES);
		if (mprotect(p - PAGE, PAGE, PROT_NONE) || mprotect(p + 2 * PAGE, 2 * PAGE, PROT_READ))
			err(1, "mprotect");
	}
}

int main(void)
{
	char *p = map(VMAS), c;
	pid_t pids[APPS];

	split_apart(p, VMAS);
	touch(p, 0, VMAS);
	start_children(pids, APPS, map_more, p);
	puts("ready");
	fflush(stdout);
	if (read(0, &c, 1) < 0)
		err(1, "read");
	end_children(pids, APPS);
	return 0;
}
