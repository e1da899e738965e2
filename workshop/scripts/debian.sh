# SPDX-License-Identifier: GPL-2.0
# Sourced by scripts that want packages of another suite or architecture of Debian than
# the machine has. They are fetched with apt's own tools under a state of their own: the
# machine's sources, lists and packages stay as they are.
# shellcheck shell=bash
# shellcheck disable=SC2034 # the callers say debian_error

# debian_source FILE SUITE: writes Debian's own entry among the machine's sources, for this
# suite, to FILE.list or FILE.sources. Without a suite it stays that of the machine.
debian_source()
{
	local files=(/etc/apt/sources.list.d/*.sources /etc/apt/sources.list
		/etc/apt/sources.list.d/*.list) file
	for file in "${files[@]}"; do
		[[ -r $file ]] || continue
		case $file in
		*.sources) awk -v suite="$2" -v RS= '
			/(^|\n)URIs:[^\n]*\/debian(\.list)?\/?( |\n|$)/ {
				if (suite) sub(/(^|\n)Suites:[^\n]*/, "\nSuites: " suite)
				sub(/(^|\n)Components:[^\n]*/, "\nComponents: main")
				print; exit
			}' "$file" ;;
		*) awk -v suite="$2" '
			$1 == "deb" { i = $2 ~ /^\[/ ? 3 : 2; while ($2 ~ /^\[/ && $(i-1) !~ /\]$/) i++ }
			$1 == "deb" && $i ~ /\/debian(\.list)?\/?$/ {
				out = "deb"; for (j = 2; j <= i; j++) out = out " " $j
				print out, suite ? suite : $(i + 1), "main"; exit
			}' "$file" ;;
		esac >"$1.new"
		if [[ -s $1.new ]]; then
			mv "$1.new" "$1.${file##*.}"
			return
		fi
	done
	rm -f "$1.new"
	return 1
}

# debian_packages DIRECTORY SUITE ARCHITECTURE PACKAGE...: the packages are in the directory
# then. Without a suite or an architecture, those are the machine's. What went wrong is in
# debian_error, in a few words, and in build/logs/debian.log.
debian_packages()
{
	local dir=$1 suite=$2 architecture=$3 apt=$1/apt options
	shift 3
	debian_error=
	need dpkg-deb:dpkg
	command -v apt-get >/dev/null || { debian_error="no apt-get here"; return 1; }
	rm -rf "$apt"
	mkdir -p "$apt"/{lists/partial,cache/archives/partial,sources}
	debian_source "$apt/sources/debian" "$suite" ||
		{ debian_error="no entry for Debian in the sources of apt"; return 1; }
	options=(-o Dir::Etc::sourcelist=/dev/null -o "Dir::Etc::sourceparts=$apt/sources"
		-o "Dir::State::lists=$apt/lists" -o "Dir::Cache=$apt/cache"
		-o APT::Sandbox::User=root -o Acquire::Retries=3)
	if [[ -n $architecture ]]; then
		: >"$apt/status"
		options+=(-o "APT::Architecture=$architecture" -o "APT::Architectures=$architecture"
			-o "Dir::State::status=$apt/status")
	fi
	logged debian.log "reading the package lists of ${suite:-Debian}" apt-get "${options[@]}" update ||
		{ debian_error="apt cannot read the lists of ${suite:-Debian}"; return 1; }
	(cd "$dir" && logged debian.log "fetching $*" apt-get "${options[@]}" download "$@") ||
		{ debian_error="apt has no $* in ${suite:-Debian}"; return 1; }
	rm -rf "$apt"
}
