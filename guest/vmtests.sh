# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
# Read by bash (BASH_ENV) before run_vmtests.sh. The script's list of tests stays the
# one to go by, but its run_test gives way to this one, which marks where each program
# begins and ends in both logs, takes its time, limits it, and can pick programs.
run_test()
{
	local name=$* start=${EPOCHREALTIME/./} status program pick wanted=${TEST:+no}
	name=${name#bash } name=${name#./} program=${name%% *}
	for pick in ${TEST:-}; do
		[[ $pick != "$program" && $pick != "${program%.sh}" && $pick != "$CATEGORY" ]] || wanted=yes
	done
	[[ $wanted != no ]] || return 0
	echo "workshop: begin $name"
	echo "workshop: begin $name" >/dev/kmsg
	timeout -k 10 "${TEST_TIMEOUT:-600}" "$@" 2>&1
	status=$?
	echo "workshop: done status=$status ms=$(((${EPOCHREALTIME/./} - start) / 1000)) $name"
}
readonly -f run_test
