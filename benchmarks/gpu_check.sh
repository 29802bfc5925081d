#!/usr/bin/env bash
# Everything that only a CUDA device can show, on a bare machine without network: nvcc, cmake, ninja, and a python3 with
# NumPy, CuPy, pytest and, for the comparisons, torch.
#
#   benchmarks/gpu_check.sh [build] [tests] [sanitize] [bench] [mnist]     # all of these by default
#   benchmarks/gpu_check.sh build kernels       # which kernels the calls that KERNELS names launch: "784-256-10", "linear"
#
# Each stage has a budget in seconds, and all of them together end within nine minutes: BUDGET_BENCH=300 and the like give
# a stage more, GPU_CHECK_SECONDS the whole. BENCH="optim train" chooses benchmarks, CHECKED="" lets compute-sanitizer watch
# all tests of the device in place of a choice, PYTHON the interpreter. Results go to $OUT (benchmarks/results by default)
# as cuda_*.csv, with the log beside them; a short table comes last.
set -uo pipefail
cd "$(dirname "$0")/.."

stages=("$@")
[ ${#stages[@]} -gt 0 ] || stages=(build tests sanitize bench mnist)
python=${PYTHON:-python3}
out=${OUT:-benchmarks/results}
build=build/gpu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PYTHONPATH=$PWD/python PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# CuPy compiles its own kernels for the device when they are first used; JAX and others may take all memory.
export CUPY_CACHE_DIR=${CUPY_CACHE_DIR:-$work/cupy} XLA_PYTHON_CLIENT_PREALLOCATE=false

declare -A budget=([build]=170 [tests]=80 [sanitize]=70 [bench]=160 [mnist]=50 [kernels]=60)
whole=${GPU_CHECK_SECONDS:-530}
# Stages left out leave their time to the others.
given=0
for stage in "${stages[@]}"; do
  [ -n "${budget[$stage]:-}" ] || { echo "$0: no stage $stage; there are ${!budget[*]}" >&2; exit 2; }
  given=$((given + budget[$stage]))
done
for stage in "${stages[@]}"; do
  name=BUDGET_${stage^^}
  budget[$stage]=${!name:-$((budget[$stage] * whole / given))}
done

mkdir -p "$out"
log=$out/gpu_check.log
: >"$log"

# Runs a command until the stage's time is over, or for at_most seconds, and shows its last lines when it fails.
limited() {
  local seconds=$((deadline - SECONDS)) status
  seconds=$((${at_most:-seconds} < seconds ? ${at_most:-seconds} : seconds))
  timeout --kill-after=5 $((seconds > 1 ? seconds : 1)) "$@" >"$work/part.log" 2>&1
  status=$?
  { echo "\$ $*"; cat "$work/part.log"; } >>"$log"
  [ $status -eq 0 ] || { echo "failed ($status): $*"; tail -n 25 "$work/part.log"; }
  return $status
}

# The folder of pybind11's CMake files: its own, or one written here around the headers that torch carries.
pybind11_dir() {
  "$python" -m pybind11 --cmakedir 2>/dev/null && return
  local headers include
  headers=$("$python" - <<'PY'
import importlib.util, pathlib
torch = pathlib.Path(importlib.util.find_spec("torch").origin).parent / "include"
print(torch if (torch / "pybind11" / "pybind11.h").is_file() else "")
PY
  )
  [ -n "$headers" ] || { echo "neither pybind11 nor torch's copy of it is installed" >&2; return 1; }
  # torch's folder holds more than pybind11, which must not be found: only that is linked.
  include=$PWD/$build/pybind11/include
  mkdir -p "$include"
  ln -sfn "$headers/pybind11" "$include/pybind11"
  cat >"$build/pybind11/pybind11Config.cmake" <<CMAKE
if(NOT TARGET pybind11::headers)
  add_library(pybind11::headers INTERFACE IMPORTED)
  set_target_properties(pybind11::headers PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "$include")
endif()
CMAKE
  echo "$PWD/$build/pybind11"
}

stage_build() {
  local pybind11
  pybind11=$(pybind11_dir) || return 1
  limited cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DFASTOPT_CUDA=ON -DFASTOPT_TESTS=ON \
    -DFASTOPT_OUTPUT_DIR="$PWD/python/fastopt" -DPython_EXECUTABLE="$(command -v "$python")" \
    -Dpybind11_DIR="$pybind11" || return
  limited cmake --build "$build" -j "$(nproc)" || return
  limited "$python" -c "import fastopt._core, fastopt._cuda"
}

stage_tests() {
  local status=0
  limited "$python" -m pytest -q -W default -p no:cacheprovider -m gpu tests/test_gpu*.py || status=1
  tail -n 1 "$work/part.log"
  limited "$python" -m pytest -q -W default -p no:cacheprovider tests/test_host_cupy.py || status=1
  limited ctest --test-dir "$build" -j "$(nproc)" --output-on-failure || status=1
  grep -h "tests passed" "$work/part.log"
  return $status
}

# The tests' kernels at small sizes; the checks make each launch tens of times slower.
stage_sanitize() {
  local tool status=0 files=(tests/test_gpu.py)
  local checked=${CHECKED-"AdamW or RMSprop or dropout or softmax or cross_entropy or linear"}
  [ -n "$checked" ] || files=(tests/test_gpu*.py)
  for tool in memcheck racecheck; do
    FASTOPT_GPU_SHORT=1 at_most=$(($1 / 2)) limited compute-sanitizer --tool "$tool" --error-exitcode 9 \
      "$python" -m pytest -q -x -W default -p no:cacheprovider -m gpu "${files[@]}" -k "$checked" || status=1
    grep -h "ERROR SUMMARY" "$work/part.log" | sed "s/^=* */$tool: /"
  done
  return $status
}

stage_bench() {
  # shellcheck disable=SC2086
  timeout --kill-after=5 "$1" "$python" benchmarks/cuda/run_cuda.py ${BENCH:-optim train losses linear} \
    --seconds $(($1 - 15)) --out "$out" --table "$work/table" 2>&1 | tee -a "$log" | grep -v '^    '
}

stage_kernels() {
  timeout --kill-after=5 "$1" "$python" benchmarks/cuda/kernels.py --only "${KERNELS:-784-256-10}" --out "$out" 2>&1 |
    tee -a "$log"
}

stage_mnist() {
  local data=none folder
  for folder in "${FASTOPT_SHARED:-}" shared ../shared; do
    [ -n "$folder" ] && [ -d "$folder/data/mnist" ] && data=$folder/data/mnist && break
  done
  timeout --kill-after=5 "$1" "$python" benchmarks/cuda/mnist_epochs.py --data "$data" --out "$out" 2>&1 |
    tee -a "$log" "$work/mnist"
}

failed=0
for stage in "${stages[@]}"; do
  start=$SECONDS
  left=$((whole - SECONDS))
  seconds=$((budget[$stage] < left ? budget[$stage] : left))
  deadline=$((SECONDS + seconds))
  printf '\n== %s, at most %d s\n' "$stage" "$seconds"
  if [ "$seconds" -lt 5 ]; then
    verdict="left out, no time"
    failed=1
  elif "stage_$stage" "$seconds"; then
    verdict=ok
  else
    verdict=FAILED
    failed=1
  fi
  printf '%-9s %-18s %4d s\n' "$stage" "$verdict" $((SECONDS - start)) >>"$work/stages"
  # What cannot be built cannot be run.
  [ "$stage" = build ] && [ "$verdict" = FAILED ] && break
done

printf '\n== %d s in all\n' "$SECONDS"
[ -f "$work/table" ] && cat "$work/table" && echo
[ -f "$work/mnist" ] && grep -v '^wrote' "$work/mnist"
cat "$work/stages"
exit $failed
