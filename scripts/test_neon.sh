#!/usr/bin/env bash
# Cross-compile the kernels for 64-bit ARM and check the NEON ones against the portable ones under emulation.
# Needs g++-aarch64-linux-gnu and qemu-user. Usage: scripts/test_neon.sh
set -euo pipefail
cd "$(dirname "$0")/../plugins/forge_cpu"
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
flags="-std=c++20 -O2 -Wall -Wextra -Werror -ffp-contract=off -fno-math-errno -pthread -Inative -DFORGE_WITH_NEON"
kernels="kernels quantize linear ceiling operations attention kv ops sample"
common="isa pool memory matrix pack unpack attention_plan pages rope_table"
compile() { # set, flags, sources...
  local set=$1 more=$2 source; shift 2
  for source in "$@"; do aarch64-linux-gnu-g++ $flags $more -c "native/$source.cpp" -o "$build/$set-$source.o"; done
}
compile neon "-march=armv8.2-a+dotprod+fp16 -DFORGE_ISA=neon -DFORGE_ISA_NEON" $kernels
compile portable "-Wno-psabi -DFORGE_ISA=portable -DFORGE_ISA_PORTABLE" $kernels
compile common "" $common
aarch64-linux-gnu-g++ $flags -static tests/native/cross_check.cpp "$build"/*.o -o "$build/check"
qemu-aarch64 -cpu max "$build/check"
