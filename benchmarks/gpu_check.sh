#!/usr/bin/env bash
# Everything that needs a GPU, in runs of a few minutes: tests, the benchmark beside PyTorch, training beside the CPU.
# See benchmarks/README.md.
#     benchmarks/gpu_check.sh first --out FOLDER
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec "${PYTHON:-python3}" benchmarks/gpu_check.py "$@"
