#!/usr/bin/env bash
# Everything that needs a GPU, in one command and under nine minutes: tests, training beside the CPU, the benchmark
# beside PyTorch. See benchmarks/README.md.
#     benchmarks/gpu_check.sh [--out FOLDER] [--only PART ...]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec "${PYTHON:-python3}" benchmarks/gpu_check.py "$@"
