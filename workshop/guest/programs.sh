# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash disable=SC2317
# Run in the guest: stress-ng, and a database, each under the marks of the selftests.

# shellcheck source=guest/vmtests.sh
. /etc/vmtests.sh

# picked NAME COMMAND...
picked()
{
	[[ -z ${ONLY:-} || " $ONLY " == *" $1 "* ]] || return 0
	run_test "${@:2}"
}

stress()
{
	local workers=4
	# Four do not end in time, on the base neither.
	[[ $1 != numa ]] || workers=1
	stress-ng --"$1" "$workers" --verify -t "$SECONDS_EACH" --temp-path /tmp --metrics-brief --oomable "${@:2}"
}

# With less memory than its data: snapshots are written, by a child, while clients write.
# What is read from the last snapshot is what the server had in memory.
redis()
{
	local group=/sys/fs/cgroup/redis socket=/run/redis.sock end round=0 before after wrong swapped
	local cli=(redis-cli -s "$socket")
	mkdir -p /tmp/redis "$group"
	echo +memory >/sys/fs/cgroup/cgroup.subtree_control
	echo 112M >"$group/memory.max"
	serve()
	{
		(echo 0 >"$group/cgroup.procs" && exec redis-server --port 0 --unixsocket "$socket" \
			--dir /tmp/redis --save '' --enable-debug-command local --daemonize yes >/dev/null)
		until [[ $("${cli[@]}" ping 2>/dev/null) == PONG ]]; do sleep 0.2; done
		# It is loading until then.
		until [[ $("${cli[@]}" dbsize) =~ ^[0-9]+$ ]]; do sleep 0.2; done
	}
	serve
	"${cli[@]}" debug populate 100000 key 1000 || return 1
	end=$((SECONDS + SECONDS_EACH * 3))
	while ((SECONDS < end)); do
		round=$((round + 1))
		"${cli[@]}" bgsave >/dev/null
		# shellcheck disable=SC2016 # Lua
		"${cli[@]}" eval 'for i = 1, 5000 do
			redis.call("set", "key:" .. math.random(0, 99999), string.rep(ARGV[1] .. ":" .. i .. ";", 80))
			end' 0 "$round" >/dev/null
		while [[ $("${cli[@]}" info persistence) == *rdb_bgsave_in_progress:1* ]]; do sleep 0.1; done
		[[ $("${cli[@]}" info persistence) == *rdb_last_bgsave_status:ok* ]] || return 1
	done
	"${cli[@]}" bgsave >/dev/null
	while [[ $("${cli[@]}" info persistence) == *rdb_bgsave_in_progress:1* ]]; do sleep 0.1; done
	# Each value is what was written, whoever has copied it or swapped it out.
	# shellcheck disable=SC2016 # Lua
	wrong=$("${cli[@]}" eval 'for i = 0, 99999 do
		local value = redis.call("get", "key:" .. i)
		if value:sub(1, 6) ~= "value:" and
		   value ~= string.rep(value:match("^[0-9:]*;") or "", 80) then return i end
		end return -1' 0)
	swapped=$(cat "$group/memory.swap.current")
	before=$("${cli[@]}" debug digest)
	echo "$round rounds, $("${cli[@]}" dbsize) keys, digest $before, wrong: $wrong, swapped: $swapped"
	echo "$(wc -l </proc/"$(pgrep -o redis-server)"/maps) VMAs"
	"${cli[@]}" shutdown nosave
	serve
	after=$("${cli[@]}" debug digest)
	"${cli[@]}" shutdown nosave
	echo "digest of the last snapshot: $after"
	[[ $before == "$after" && $before =~ [1-9] && $wrong == -1 ]] && ((swapped > 0 && round > 0))
}

export -f stress redis
export TEST_TIMEOUT=$((SECONDS_EACH * 10 + 120))
picked redis redis
for stressor in vm fork vfork clone mremap mmap mmapfork mmapaddr mmapfixed mmapmany madvise bad-altstack \
	brk stack shm munmap malloc swap numa userfaultfd mprotect mincore msync resources memhotplug mlock zombie vm-splice \
	vm-addr vm-segv vm-rw remap physpage mmaphuge forkheavy vforkmany pageswap; do
	picked "$stressor" stress "$stressor"
done
# Those whose harm is that they use all memory, and options that go with another one
picked mlockmany stress mlockmany --pathological
picked ksm stress vm --vm-madvise mergeable
picked page-in stress vm --page-in
exit 0
