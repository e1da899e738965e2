# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
# Read by bash (BASH_ENV) before run_vmtests.sh. The script's list of tests stays the
# one to go by, but its run_test gives way to this one, which marks where each program
# begins and ends in both logs, takes its time, limits it, and can pick programs.
unset BASH_ENV

run_test()
{
	local name=$* start=${EPOCHREALTIME/./} status program pick wanted=${TEST:+no}
	name=${name#bash } name=${name#./} program=${name%% *}
	for pick in ${TEST:-}; do
		[[ $pick != "$program" && $pick != "${program%.sh}" && $pick != "$CATEGORY" ]] || wanted=yes
	done
	[[ -z ${TEST_ONLY:-} || "|$TEST_ONLY|" == *"|$name|"* ]] || wanted=no
	[[ $wanted != no ]] || return 0
	if [[ -z ${TEST:-}${ALL:-} ]] && grep -qxF "$name" /etc/left-out; then
		echo "workshop: begin $name"
		echo "ok 1 # SKIP left out here, ALL=1 runs it"
		echo "workshop: done status=4 ms=0 $name"
		return
	fi
	case $program in
	# It wants two threads, each beside a CPU that it does not run on.
	migration) cpus 1 ;;
	# It poisons eight and brings none.
	hugetlb-read-hwpoison) hugepages 16 ;;
	# It wants each page looked at in each scan.
	ksm_tests) echo 0 >/sys/kernel/mm/ksm/smart_scan ;;
	esac
	echo "workshop: begin $name"
	echo "workshop: begin $name" >/dev/kmsg
	# shellcheck disable=SC2016 # it is for the bash inside
	setsid bash -c 'echo $$ >/run/session; limit=$1; shift
		exec timeout -k 10 "$limit" bash -c '\''"$@" 2>&1 | cat; exit "${PIPESTATUS[0]}"'\'' - "$@"
	' - "${TEST_TIMEOUT:-600}" "$@"
	status=$?
	# What it left running neither prints into the next one's results nor disturbs it.
	pkill -KILL -s "$(</run/session)"
	echo "workshop: done status=$status ms=$(((${EPOCHREALTIME/./} - start) / 1000)) $name"
	case $program in
	migration) cpus 0 ;;
	hugetlb-read-hwpoison) hugepages 0 ;;
	ksm_tests) echo 1 >/sys/kernel/mm/ksm/smart_scan ;;
	esac
}
readonly -f run_test

# The CPUs beyond the two that the guest has from its boot: on (1) or off (0).
cpus()
{
	local cpu
	for cpu in /sys/devices/system/cpu/cpu[2-9]/online; do
		echo "$1" >"$cpu"
	done
}

# The size of the pool of huge pages.
hugepages() { echo "$1" >/proc/sys/vm/nr_hugepages; }
