#!/bin/sh
# Builds the fuzz target under AddressSanitizer and UBSan: build.sh OUTPUT [portable]
# With clang++ it is a libFuzzer binary, with g++ a driver of its own (argument: executions, seed).
# "portable" leaves the SIMD kernels out, so that coverage and sanitizers see plain C++.
set -eu
output=$1
here=$(cd "$(dirname "$0")" && pwd)
native=$here/../../horovod_qoda/native
objects=$(mktemp -d)
trap 'rm -rf "$objects"' EXIT
common="-std=c++17 -O1 -g -ffp-contract=off -fno-omit-frame-pointer -pthread -I$native ${FUZZ_FLAGS:-}"
if [ -z "${CXX:-}" ]; then
  if command -v clang++ > /dev/null; then CXX=clang++; else CXX=g++; fi
fi
case $CXX in
  *clang*) target="-fsanitize=fuzzer"; common="$common -fsanitize=address,undefined,fuzzer-no-link" ;;
  *) target="-DSTANDALONE"; common="$common -fsanitize=address,undefined" ;;
esac
common="$common -fno-sanitize-recover=all"
if [ "$(uname -m)" != x86_64 ] || [ "${2:-}" = portable ]; then
  common="$common -DHOROVOD_QODA_NO_SSE42 -DHOROVOD_QODA_NO_AVX2 -DHOROVOD_QODA_NO_AVX512"
fi
for source in "$native"/*.cpp; do
  if grep -q '"arguments.hpp"' "$source"; then continue; fi  # for Python
  name=$(basename "$source" .cpp)
  flags=
  case $name in
    *_sse42) flags=-msse4.2 ;;
    *_avx2) flags="-mavx2 -mbmi2" ;;
    *_avx512)
      flags="-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vbmi -mavx512vbmi2 -mbmi2" ;;
  esac
  case $common$name in *NO_SSE42*_sse42|*NO_AVX2*_avx2|*NO_AVX512*_avx512) continue ;; esac
  $CXX $common $flags -c "$source" -o "$objects/$name.o"
done
$CXX $common $target "$here/decode_fuzz.cpp" "$objects"/*.o -o "$output"
