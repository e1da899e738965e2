# SPDX-License-Identifier: GPL-2.0
# Sourced by the tests of the workshop.
# shellcheck shell=bash
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../scripts/lib.sh"

passed=0 failed=0
work=$(mktemp -d "$build/test.XXXXXX")
trap 'rm -rf "$work"' EXIT

# fails_with SECONDS TEXT NAME COMMAND...: the command ends in time, with a status other
# than 0, and says TEXT (a pattern of grep -E) on standard error. What it counts is not
# counted, as it was meant to fail.
fails_with()
{
	local seconds=$1 text=$2 name=$3 status=0
	shift 3
	env -u TALLY timeout -k 5 "$seconds" "$@" >"$work/out" 2>"$work/err" || status=$?
	if ((status == 0)); then
		bad "$name" "it ended with status 0"
	elif ((status == 124 || status == 137)); then
		bad "$name" "it did not end within $seconds s"
	elif ! grep -qE "$text" "$work/err"; then
		bad "$name" "it did not say '$text'"
	else
		good "$name"
	fi
}

good() { echo "ok - $1"; passed=$((passed + 1)); }
bad()
{
	echo "not ok - $1: $2"
	sed 's/^/  | /' "$work/out" "$work/err" 2>/dev/null | tail -n 20 || :
	failed=$((failed + 1))
}

finish()
{
	tally $passed $failed
	echo "$passed passed, $failed failed"
	((failed == 0))
}
