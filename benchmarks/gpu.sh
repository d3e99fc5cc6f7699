#!/usr/bin/env bash
# All GPU measurements in one go, into benchmarks/results/gpu-NAME.json and benchmarks/RESULTS.md; takes the options of
# `python -m benchmarks.gpu`. NANOGPT=/path/to/a/clone adds nanoGPT; PYTHON is the Python to use, .venv's unless given.
# To try it without a GPU: benchmarks/gpu.sh --device cpu --shape tiny --steps 2 --results /some/folder
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,power.limit --format=csv 2>/dev/null || true
"$python" -m benchmarks.gpu "$@"
"$python" -m benchmarks.table
