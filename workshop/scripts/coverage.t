#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Which lines and branches of the series are run, by gcov, in one guest: KUnit, the selftests of
# the series, stress for MINUTES= (default 10), half of them with allocations that fail, and each
# operation without each of its allocations. Counted is what stands in functions that the series
# adds or changes: all of an added file, and of others the lines that it adds or changes.
#
# Writes build/results/coverage/: summary.tsv (file, function, lines, lines hit, branches,
# branches hit) and missed.txt, what was never reached. Fails if a test does, and if a function of
# an added file was never entered and the tables of TESTING.md give no reason. RUN=no counts anew
# what the last run left.
export CONFIG=gcov
. "$(dirname "$0")/lib.sh"

obj=$build/obj/patched-gcov
out=$build/results/coverage-full
seconds=$((${MINUTES:-10} * 30))
# Programs of the base for what no other reaches
base_tests="merge|test_hmm.sh smoke|guard-regions|ksm_functional_tests|memory-failure|hugetlb-mremap|khugepaged all:shmem"
# Of lines that only tell that something is wrong, the branch that does is not asked for.
checks='(WARN|BUG)_ON|_WARN\(|lockdep_assert|mmap_assert|vma_assert|might_sleep'

"$workshop/scripts/tree"
need qemu-system-x86_64:qemu-system-x86 lcov:lcov ctags-universal:universal-ctags
mkdir -p "$out"

in_guest()
{
	"$workshop/scripts/image"
	mapfile -t tests < <(series_selftests A patched)
	logged selftests.log "building the selftests of the series" build_selftests patched "${tests[@]}"
	rm -rf "$out"
	mkdir -p "$out/root"
	gcc -O2 -Wall -static -o "$out/root/failing" "$workshop/bench/failing.c"
	on_top "$out/root" "$out/rootfs.cpio"
	{
		echo "cd /root/mm; . /etc/vmtests.sh; TEST_TIMEOUT=3600"
		echo "export COW_CONTEXT_CHECK=1 RACE_SECONDS=${RACE_SECONDS:-5} NR_FORKS=2000 NR_GENERATIONS=10000"
		echo "export STRESS_SECONDS=$seconds STRESS_ROUND=15 STRESS_SEED=${SEED:-$((RANDOM * 32768 + RANDOM))}"
		printf 'run_test ./%s\n' "${tests[@]}"
		echo 'run_test env STRESS_FAIL=1 ./cow_context_stress'
		# The kernel kills a program whose rseq area it cannot write to.
		echo 'run_test env GLIBC_TUNABLES=glibc.pthread.rseq=0 /failing'
		# Their results are a matter of make run; the kernel's check looks on.
		echo 'while sleep 1; do echo >/sys/kernel/debug/cow_context/check; done & check=$!'
		echo "mv /root/mm /tmp; cd /tmp/mm"
		echo "TEST_ONLY='$base_tests' BASH_ENV=/etc/vmtests.sh bash ./run_vmtests.sh -n -d 2>&1 | grep -E '^(workshop: done|not ok)'"
		echo 'kill $check'
		# KUnit last: what kunit_attach_mm() makes is never freed, and contexts are counted above.
		echo 'for suite in /sys/kernel/debug/kunit/cow_*; do echo >"$suite/run"; run_test cat "$suite/results"; done'
		# These files have no size that tar would believe.
		echo "cd /sys/kernel/debug/gcov$obj || exit"
		echo 'find . -name "*.gcda" | while read -r f; do mkdir -p "/run/gcov/${f%/*}"; cat "$f" >"/run/gcov/$f"; done'
		echo 'echo "workshop: gcov"; tar -C /run/gcov -cz . | base64; echo "workshop: end of gcov"'
		echo 'exit 0'
	} >"$out/job"
	say "KUnit, selftests, $((2 * seconds)) s of stress (logs: $out)"
	"$workshop/scripts/guest" --obj "$obj" --root "$out/rootfs.cpio" --job "$out/job" --out "$out" \
		--limit "${LIMIT:-5400}" --silence "${SILENCE:-1800}" --boot-limit 600 \
		--append "$slab_debug kunit.enable=1 kunit.autorun=0 kunit.filter_glob=cow_*" \
		--progress '^(# cow_context_stress.*|workshop: done.*|(?:not )?ok .*)'
}

failed=
if [[ ${RUN:-} != no ]]; then
	in_guest || failed="the guest"
	"$workshop/scripts/results" --all-pass "$out/job.log" || failed=${failed:-"a test"}
fi

# The counters beside what the compiler has written about them.
capture()
{
	rm -rf "$out/gcov"
	mkdir -p "$out/gcov"
	sed -n '/^workshop: gcov/,/^workshop: end of gcov/p' "$out/job.log" | tr -d '\r' | sed '1d;$d' |
		base64 -d | tar -xz -C "$out/gcov"
	(cd "$out/gcov" && find . -name '*.gcda') | while read -r file; do
		ln -s "$obj/${file%.gcda}.gcno" "$out/gcov/${file%.gcda}.gcno"
	done
	lcov --quiet --capture --directory "$out/gcov" --output-file "$out/all.info" \
		--rc lcov_branch_coverage=1 --rc "lcov_excl_br_line=$checks"
}
logged coverage.log "reading the counters" capture

# What to count: an added file's functions, and of others those with lines of the series.
changed=('*.[ch]' ':!tools' ':!mm/tests')
in_tree diff --no-renames --diff-filter=AM --name-status base HEAD -- "${changed[@]}" >"$out/files"
in_tree diff --no-renames -U0 base HEAD -- "${changed[@]}" |
	sed -nE 's,^\+\+\+ b/,file ,p; s/^@@ -[^ ]* \+([0-9]+),?([0-9]*) @@.*/\1 \2/p' >"$out/hunks"
(
	cd "$linux"
	cut -f2 "$out/files" | xargs ctags-universal -x --language-force=C --kinds-C=f -I INTERVAL_TREE_DEFINE+ --_xformat='%F %n %{end} %N' -o -
) | sort -k1,1 -k2,2n >"$out/functions"

# Its tables are read for rows of a file, functions of it, and a reason.
awk -v linux="$linux" -v summary="$out/summary.tsv" -v missed="$out/missed.txt" '
	function percent(some, all) { return all ? int(100 * some / all) "%" : "-" }
	function row(name, calls, l, lh, b, bh) {
		printf "%-46s %9s %6d %6d %5s %6d %6d %5s\n", name, calls, l, lh, percent(lh, l), b, bh, percent(bh, b)
	}
	FILENAME ~ /\/files$/ { added[$2] = $1 == "A"; next }
	FILENAME ~ /\/hunks$/ && $1 == "file" { file = $2; next }
	FILENAME ~ /\/hunks$/ { for (i = 0; i < ($2 == "" ? 1 : $2); i++) ours[file, $1 + i]; next }
	FILENAME ~ /\/functions$/ {
		f = $1 SUBSEP $4
		for (i = $2; i <= $3; i++)
			of[$1, i] = f
		if (!(f in file_of))
			order[++nr] = f
		file_of[f] = $1
		name_of[f] = $4
		next
	}
	FILENAME ~ /\.md$/ {
		if (split($0, part, "`") >= 4 && part[1] == "| " && part[3] == " | ")
			for (i = 4; part[i - 1] !~ /\|.*\|/ && i in part; i += 2)
				explained[part[2], part[i]]
		next
	}
	/^SF:/ { file = substr($0, 4); sub(linux "/", "", file); next }
	!(file in added) { next }
	/^DA:/ {
		split(substr($0, 4), part, ",")
		if (!((file, part[1]) in of))
			next
		entered[of[file, part[1]]] += part[2] > 0
		if (added[file] || (file, part[1]) in ours)
			count[file, part[1]] += part[2]
	}
	/^BRDA:/ {
		split(substr($0, 6), part, ",")
		if (!((file, part[1]) in of) || !added[file] && !((file, part[1]) in ours))
			next
		branch[file, part[1], part[2], part[3]] += part[4]
	}
	END {
		# A line of a header is in the counts of several objects.
		for (i in count) {
			f = of[i]
			lines[f]++
			hit[f] += count[i] > 0
		}
		for (i in branch) {
			split(i, part, SUBSEP)
			f = of[part[1], part[2]]
			branches[f]++
			taken[f] += branch[i] > 0
			at[part[1], part[2]]++
			untaken[part[1], part[2]] += !branch[i]
		}
		print "file\tfunction\tlines\tlines hit\tbranches\tbranches hit" >summary
		printf "" >missed
		for (i = 1; i <= nr; i++) {
			f = order[i]
			if (!lines[f])
				continue
			file = file_of[f]
			if (!(file in all))
				files[++n] = file
			all[file]++
			some[file] += entered[f] > 0
			l[file] += lines[f]; lh[file] += hit[f]; b[file] += branches[f]; bh[file] += taken[f]
			printf "%s\t%s\t%d\t%d\t%d\t%d\n", file, name_of[f], lines[f], hit[f], branches[f], taken[f] >summary
			if (hit[f] < lines[f] || taken[f] < branches[f]) {
				less[++k] = f
				if (!(f in explained))
					unexplained[++u] = f
			}
			if (!entered[f] && added[file] && !(f in explained))
				bad[++nbad] = f
		}
		printf "%-46s %9s %6s %6s %5s %6s %6s %5s\n", "file", "functions", "lines", "hit", "", "branch", "hit", ""
		for (i = 1; i <= n; i++) {
			file = files[i]
			row(file, some[file] "/" all[file], l[file], lh[file], b[file], bh[file])
			A += all[file]; S += some[file]; L += l[file]; LH += lh[file]; B += b[file]; BH += bh[file]
			path = linux "/" file
			printed = 0
			for (nl = 1; (getline text <path) > 0; nl++) {
				if (!((file, nl) in count) || count[file, nl] && !untaken[file, nl])
					continue
				f = of[file, nl]
				if (f != printed)
					printf "%s%s: %s()%s\n", printed ? "\n" : "", file, name_of[f], entered[f] ? "" : ", never entered" >missed
				printed = f
				what = !count[file, nl] ? "never" : untaken[file, nl] " of " at[file, nl] " branches"
				printf "%6d %-14s %s\n", nl, what, text >missed
			}
			if (printed)
				print "" >missed
			close(path)
		}
		row("in all", S "/" A, L, LH, B, BH)
		print "\nfunctions of which something was never reached (what: " missed "):"
		for (i = 1; i <= k; i++) {
			f = less[i]
			row(file_of[f] " " name_of[f], entered[f] ? "" : "never", lines[f], hit[f], branches[f], taken[f])
		}
		if (u)
			print "\nof which TESTING.md says nothing:"
		for (i = 1; i <= u; i++)
			print "  " file_of[unexplained[i]] " " name_of[unexplained[i]]
		for (i = 1; i <= nbad; i++)
			print "error: never entered, and TESTING.md gives no reason: " file_of[bad[i]] ": " name_of[bad[i]] "()"
		exit nbad > 0
	}
' "$out/files" "$out/hunks" "$out/functions" "$top/TESTING.md" "$out/all.info" | tee "$out/table.txt" ||
	failed=${failed:-"a function of an added file, which was never entered"}
[[ -z $failed ]] || die "coverage: failed by $failed, see above and $out"
