# SPDX-License-Identifier: GPL-2.0
# The one entrance to the workshop. README.md says what each target does.

KERNEL ?= patched
CONFIG ?= default
ARCH ?= x86_64
export KERNEL CONFIG ARCH

.PHONY: help run test tree export check kernel kunit vma-tests selftests shell \
	try bisectable bisect bench failing models configs stress programs protections workshop-tests clean
.NOTPARALLEL:

help:
	@sed -n 's/^| `make \(.*\)` | \(.*\) |$$/make \1\t\2/p' README.md | expand -t 32

run try tree export check kernel kunit vma-tests selftests shell bisectable bisect bench failing models configs stress programs test:
	@workshop/scripts/$@

protections:
	@workshop/tests/protections

workshop-tests:
	@workshop/tests/failures
	@workshop/tests/bisect

clean:
	rm -rf build/obj build/image build/results build/logs
