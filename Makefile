# SPDX-License-Identifier: GPL-2.0
# The one entrance to the workshop. README.md says what each target does.

KERNEL ?= patched
CONFIG ?= default
ARCH ?= x86_64
export KERNEL CONFIG ARCH

# Each is a script of that name.
scripts := run try test tree export check kernel kunit vma-tests selftests shell bisectable bisect \
	bench bench-native bench-locks bench-slab report coverage failing models configs stress programs

.PHONY: help $(scripts) protections workshop-tests clean
.NOTPARALLEL:

help:
	@sed -n 's/^| `make \(.*\)` | \(.*\) |$$/make \1\t\2/; t found; d; : found; s/\\|/|/g; p' README.md | expand -t 32

$(scripts):
	@workshop/scripts/$@

protections:
	@workshop/tests/protections

workshop-tests:
	@workshop/tests/failures
	@workshop/tests/models
	@workshop/tests/report
	@workshop/tests/bisect

clean:
	rm -rf build/obj build/image build/image-* build/results build/report build/logs
