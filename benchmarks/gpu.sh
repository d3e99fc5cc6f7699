#!/usr/bin/env bash
# All GPU checks and measurements in one go, within 9 minutes: one table, benchmarks/results/gpu-NAME.json and
# benchmarks/RESULTS.md. Takes the options of `python -m benchmarks.gpu`. NANOGPT=/path/to/a/clone adds nanoGPT; PYTHON is
# the Python to use, .venv's unless given. To try every part without a GPU: benchmarks/gpu.sh --device cpu --quick
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,power.limit --format=csv 2>/dev/null || true
"$python" -m benchmarks.gpu "$@"
