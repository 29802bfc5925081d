#!/usr/bin/env bash
# Which lines of csrc/cuda the host's tests run, for each file and in all: builds tests/host_cuda with gcc's counters in
# build/coverage, runs its parts and reads what gcov makes of them. Lines that no part runs are listed. The module over host
# memory is built too, for the Python tests.
#
#   tools/cuda_coverage.sh              # in a shell with cmake, ninja, pybind11
#   JOBS=4 tools/cuda_coverage.sh
set -euo pipefail
cd "$(dirname "$0")/.."

build=build/coverage
cmake -S . -B $build -G Ninja -DCMAKE_BUILD_TYPE=Release -DFASTOPT_TESTS=ON -DFASTOPT_CUDA=OFF \
  -DFASTOPT_COVERAGE=ON >/dev/null
cmake --build $build --target host_cuda_tests _cuda_on_host --parallel "${JOBS:-$(nproc)}"
find $build -name '*.gcda' -delete
ctest --test-dir $build -R cuda --output-on-failure

find "$PWD/$build" -name '*.gcda' -exec gcov --json-format --stdout {} + | python3 -c '
import json, pathlib, sys

source = pathlib.Path("csrc/cuda").resolve()
counts = {}  # (file, line): how often it ran, in all templates and translation units
for report in map(json.loads, sys.stdin):
    for file in report["files"]:
        path = pathlib.Path(report["current_working_directory"], file["file"]).resolve()
        if path.is_relative_to(source):
            for line in file["lines"]:
                at = path.name, line["line_number"]
                counts[at] = counts.get(at, 0) + line["count"]

def show(name, lines):
    run = sum(counts[at] > 0 for at in lines)
    missed = [at[1] for at in sorted(lines) if not counts[at]]
    tail = "  not run: " + " ".join(map(str, missed)) if missed and name != "all" else ""
    print(f"{name:20} {run:5} of {len(lines):5} lines {100 * run / len(lines):6.1f} %{tail}")

for name in sorted({name for name, _ in counts}):
    show(name, [at for at in counts if at[0] == name])
show("all", list(counts))
'
