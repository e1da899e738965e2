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
	[[ $wanted != no ]] || return 0
	if [[ -z ${TEST:-}${ALL:-} ]] && grep -qxF "$name" /etc/left-out; then
		echo "workshop: begin $name"
		echo "ok 1 # SKIP left out here, ALL=1 runs it"
		echo "workshop: done status=4 ms=0 $name"
		return
	fi
	# It wants two threads, each beside a CPU that it does not run on.
	[[ $program != migration ]] || cpus 1
	echo "workshop: begin $name"
	echo "workshop: begin $name" >/dev/kmsg
	timeout -k 10 "${TEST_TIMEOUT:-600}" "$@" 2>&1
	status=$?
	echo "workshop: done status=$status ms=$(((${EPOCHREALTIME/./} - start) / 1000)) $name"
	[[ $program != migration ]] || cpus 0
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
