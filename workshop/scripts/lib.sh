# SPDX-License-Identifier: GPL-2.0
# Sourced by the scripts: where things are, messages, packages, the kernel tree.
# shellcheck shell=bash
set -euo pipefail

workshop=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
top=$(dirname "$workshop")
build=${BUILD:-$top/build}
linux=$build/linux
logs=$build/logs
# shellcheck disable=SC2034 # the scripts use it
jobs=${JOBS:-$(nproc)}
mkdir -p "$logs"

# What ARCH= means: what the kernel calls it (with the longer name of x86, tinyconfig gives another
# configuration), the kernel's image, the emulator and its package, the cross compiler's prefix,
# where Debian's packages of the architecture are unpacked, and what it calls its directories of
# libraries. Directories in build/ have the architecture in their names where it is not x86-64.
export ARCH=${ARCH:-x86_64}
kernel_arch=$ARCH cross='' sysroot='' suffix='' multiarch=$ARCH-linux-gnu
# shellcheck disable=SC2034 # the scripts use them
case $ARCH in
x86_64)
	kernel_arch=x86 boot_image=arch/x86/boot/bzImage emulator=qemu-system-x86_64:qemu-system-x86
	;;
arm64)
	boot_image=arch/arm64/boot/Image emulator=qemu-system-aarch64:qemu-system-arm
	multiarch=aarch64-linux-gnu cross=$multiarch- sysroot=$build/debian-arm64 suffix=-arm64
	;;
*) printf "error: no such architecture: '%s' (ARCH=x86_64 or ARCH=arm64)\n" "$ARCH" >&2; exit 2 ;;
esac
[[ $(uname -m) == x86_64 ]] || { echo "error: this workshop is for x86-64 machines; others are emulated on them" >&2; exit 2; }
# shellcheck disable=SC2034 # the scripts use them
image=$build/image$suffix headers=$build/obj/headers$suffix compiler="ccache ${cross}gcc"

# One cache for all kernels; paths below build/ count relatively in it.
export CCACHE_DIR=${CCACHE_DIR:-$build/ccache} CCACHE_BASEDIR=$build
# Misses are not preprocessed twice: the compiler names the headers anyway.
export CCACHE_MAXSIZE=${CCACHE_MAXSIZE:-8G} CCACHE_NOHASHDIR=1 CCACHE_DEPEND=1
export KBUILD_BUILD_TIMESTAMP='1970-01-01' KBUILD_BUILD_USER=user KBUILD_BUILD_HOST=host

# Kernel parameters so that objects of these caches are counted exactly. The list stands in
# place of CONFIG_SLUB_DEBUG_ON for them, so on debug kernels it says all that means.
# shellcheck disable=SC2034
slab_debug=slab_debug=F,cow_context,cow_moved,mm_struct
[[ ${CONFIG:-default} != debug ]] || slab_debug="${slab_debug/=F,/=FZPU,} page_poison=1"
# Huge pages of 512M want more memory.
[[ ${CONFIG:-default} != 64k ]] || export GUEST_GIB=${GUEST_GIB:-12}

# What git bisect run tells those that it runs is about one of several trees, and what make tells
# is about itself. What programs print is read, so it is in English.
unset GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE GIT_PREFIX MAKEFLAGS MFLAGS MAKELEVEL LANGUAGE
export LC_ALL=C.UTF-8
# Where Debian has no sbin in a user's.
PATH=$PATH:/usr/sbin:/sbin

# Where git wants a name, and a fresh machine has none.
export GIT_COMMITTER_NAME=series GIT_COMMITTER_EMAIL=series@invalid

say() { printf '[%3d:%02d] %s\n' $((SECONDS / 60)) $((SECONDS % 60)) "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# Emulated machines have so many, with one node for two of them.
[[ ${CPUS:-2} =~ ^[1-4]$ ]] || die "CPUS= is 1 to 4, not '$CPUS'"

# tally PASSED FAILED: what a test counted; make test adds these up.
tally() { [[ -z ${TALLY:-} ]] || echo "$1 $2" >>"$TALLY"; }

# logged LOG WHAT COMMAND...: runs a long command with its output in build/logs/LOG,
# says every half minute that it still runs, and shows the end of the log if it fails.
logged()
{
	local log=$logs/$1 what=$2 start=$SECONDS status=0 pid
	shift 2
	mkdir -p "$(dirname "$log")"
	say "$what (log: $log)"
	"$@" >"$log" 2>&1 </dev/null &
	pid=$!
	trap 'kill "$pid" 2>/dev/null || :; exit 130' INT TERM
	while kill -0 $pid 2>/dev/null; do
		sleep 0.2
		if ((SECONDS - start >= ${beat:=30})); then
			say "  $what: still running after $((SECONDS - start)) s"
			beat=$((beat + 30))
		fi
	done
	beat=30
	wait $pid || status=$?
	trap - INT TERM
	if ((status)); then
		tail -n 25 "$log" | sed 's/^/  | /' >&2
		printf 'error: %s failed with status %d, see %s\n' "$what" $status "$log" >&2
		return $status
	fi
}

# need COMMAND:PACKAGE...: installs the Debian packages of what is missing. With a
# path (or pattern of one) in place of a command, it is needed if there is no such file.
need()
{
	local pair missing=()
	for pair; do
		if [[ $pair == /* ]]; then
			compgen -G "${pair%%:*}" >/dev/null || missing+=("${pair#*:}")
		else
			command -v "${pair%%:*}" >/dev/null || missing+=("${pair#*:}")
		fi
	done
	((${#missing[@]})) || return 0
	if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null || [[ ${INSTALL:-yes} == no ]]; then
		die "missing here, install them first: ${missing[*]}"
	fi
	export DEBIAN_FRONTEND=noninteractive
	# apt-get update does not wait for another one.
	(
		flock 9
		if [[ -z $(find "$build/.apt-updated" -mmin -1440 2>/dev/null) ]] || ! compgen -G '/var/lib/apt/lists/*Packages*' >/dev/null; then
			logged apt.log "apt-get update" apt-get update
			touch "$build/.apt-updated"
		fi
		logged apt.log "installing ${missing[*]}" \
			apt-get -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "${missing[@]}"
	) 9>"$build/.apt-lock"
}

need_build()
{
	need gcc:gcc make:make ccache:ccache flex:flex bison:bison bc:bc cpio:cpio perl:perl \
		lz4:lz4 rsync:rsync kmod:kmod python3:python3 \
		/usr/include/stdio.h:libc6-dev /usr/include/libelf.h:libelf-dev \
		/usr/include/openssl/opensslv.h:libssl-dev
	[[ -z $cross ]] || need "${cross}gcc:gcc-$multiarch" "/usr/$multiarch/include/stdio.h:libc6-dev-$ARCH-cross"
}

# kind KERNEL [CONFIG]: what directories of this kernel and what comes of it are called, and where
# it is built.
kind() { echo "$1$suffix-${2:-${CONFIG:-default}}"; }
obj_of() { echo "$build/obj/$(kind "$@")"; }

only_x86() { [[ $ARCH == x86_64 ]] || die "make $(basename "$0") is for ARCH=x86_64 only"; }

# configure OBJ TARGET FRAGMENT...: what TARGET makes of the configuration with the fragments
# on top, by the make command in the array "make"; later ones win. Nothing that was asked
# for got lost, but for what the kernel does not have of the fragment OPTIONAL.
configure()
{
	local obj=$1 fragment asked=()
	# shellcheck disable=SC2154 # the callers have it
	"${make[@]}" "$2"
	shift 2
	"$linux/scripts/kconfig/merge_config.sh" -m -O "$obj" "$obj/.config" "$@"
	"${make[@]}" olddefconfig
	for fragment; do
		[[ $fragment == "${OPTIONAL:-}" ]] || asked+=("$fragment")
	done
	sed -nE 's/^(# )?(CONFIG_[A-Z0-9_]+)[ =].*/\2 &/p' "${asked[@]}" |
		awk '{ name = $1; sub(/^[^ ]* /, ""); last[name] = $0 } END { for (n in last) print last[n] }' |
		not_lost "$obj/.config"
}

# not_lost CONFIG: the lines of its input that CONFIG does not have are shown.
not_lost()
{
	local line name lost=0
	while read -r line; do
		grep -qxF "$line" "$1" && continue
		name=${line#\# } name=${name%%[ =]*}
		[[ $line == "# "* ]] && ! grep -q "^$name=" "$1" && continue
		echo "error: the kernel has no '$line'"
		lost=1
	done
	return $lost
}

# The patches of a directory, the cover letter left out, and a hash of them all.
patch_files() { find "$1" -maxdepth 1 -name '[0-9]*.patch' ! -name '0000-*' | sort; }
patches_hash() { patch_files "$1" | xargs -r cat | sha256sum | cut -d' ' -f1; }

# The series as it stands in build/linux: the commits after the base.
series() { git -C "$linux" rev-list --reverse base..HEAD; }

# Whatever the user's git does with commits and differences elsewhere
in_tree() { git -C "$linux" -c commit.gpgSign=false -c diff.noprefix=false -c diff.mnemonicPrefix=false "$@"; }

# Where the source of a kind of kernel is: a second work tree for the base, and one
# that moves over the commits of the series.
source_of()
{
	case $1 in
	patched) echo "$linux" ;;
	base | bisect | unprotected) echo "$build/$1" ;;
	compile) echo "$build/bisect" ;;
	*) die "no such kernel: '$1' (KERNEL=base or KERNEL=patched)" ;;
	esac
}

# work_tree NAME COMMIT: the work tree build/NAME stands at COMMIT.
work_tree()
{
	local dir=$build/$1
	if [[ ! -e $dir/.git ]]; then
		in_tree worktree prune
		in_tree worktree add -q --detach "$dir" "$2"
	elif [[ $(git -C "$dir" rev-parse HEAD) != $(in_tree rev-parse "$2^{commit}") ]]; then
		git -C "$dir" checkout -q --force --detach "$(in_tree rev-parse "$2^{commit}")"
	fi
}

# The mm selftests that the series adds (A) or changes (M), as far as it is applied to
# the source of a kind of kernel: series_selftests A|M KERNEL.
series_selftests()
{
	local source
	source=$(source_of "$2")
	git -C "$source" diff --no-renames --name-only --diff-filter="$1" base HEAD -- \
		'tools/testing/selftests/mm/*.c' |
		while read -r file; do
			# What has no main() is a part of others.
			! grep -qE '^int main\(|TEST_HARNESS_MAIN' "$source/$file" || basename "$file" .c
		done
}

# make_selftests ARGUMENT...: make for selftests of the guest's architecture.
make_selftests()
{
	# Here 32-bit programs find the headers by this variable, that gcc finds by itself for others.
	local include=$sysroot/usr/include
	[[ -n $cross ]] || include+=/$multiarch
	C_INCLUDE_PATH=$include make ARCH="$ARCH" CROSS_COMPILE="$cross" CC="$compiler" \
		${sysroot:+"USERLDFLAGS=-L$sysroot/usr/lib/$multiarch"} "$@"
}

# build_selftests KERNEL PROGRAM...: builds them anew; in the guest of this kernel they
# join the base's, or stand in for these.
build_selftests()
{
	local programs source program
	programs=$(obj_of "$1")/modroot/root/mm
	source=$(source_of "$1")
	mkdir -p "$programs"
	for program in "${@:2}"; do
		rm -f "$programs/$program"
		make_selftests -C "$source/tools/testing/selftests/mm" OUTPUT="$programs" \
			KHDR_INCLUDES="-isystem $headers/usr/include" "$programs/$program"
	done
}

# on_top DIRECTORY ARCHIVE: the guest's root with what the directory has on top of it.
on_top()
{
	(cd "$1" && find . -print0 | cpio -0 -o -H newc --quiet) | cat "$image/rootfs.cpio" - >"$2"
}

# with_libraries ROOT FILE...: the libraries that these need, and those that these need in turn,
# go into the root of a guest. The files need not run here.
with_libraries()
{
	local root=$1 file header name place dirs
	shift
	for file; do
		header=$(readelf -hld "$file" 2>/dev/null) || continue
		dirs=("/lib/$multiarch" "/usr/lib/$multiarch")
		[[ $header != *Class:*ELF32* ]] || dirs=(/lib32 /usr/lib32)
		while read -r name; do
			place=$name
			[[ $name == /* ]] || for place in "${dirs[@]/%//$name}" ''; do
				[[ ! -e $sysroot$place ]] || break
			done
			[[ -n $place ]] || die "there is no $name here, which $file needs"
			[[ ! -e $root$place ]] || continue
			mkdir -p "$root$(dirname "$place")"
			cp -L "$sysroot$place" "$root$place"
			with_libraries "$root" "$root$place"
		done < <(sed -nE 's/.*(Shared library: \[|program interpreter: )([^]]*)\]$/\2/p' <<<"$header")
	done
}

# smoke_test KERNEL: the tests that TEST= names are no worse there than on the base. Where
# memory is mapped is another place each time, which some tests mind: they run once more.
smoke_test()
{
	local once
	for once in '' again; do
		[[ -z $once ]] || say "the smoke test failed; once more"
		KERNEL=$1 "$workshop/scripts/vmtests" &&
			"$workshop/scripts/results" --quiet --base "$(vmtests_out base)/job.log" "$(vmtests_out "$1")/job.log" &&
			return
	done
	return 1
}

# Where the results of the mm selftests on a kind of kernel are.
vmtests_out()
{
	local picked=${TEST:-${TEST_ONLY:+${TEST_ROUND:-again}}}
	echo "$build/results/$(kind "$1")${picked:+-${picked// /-}}"
}
