"""The GPU benchmark: correctness on the GPU first, then speed, in one table; see benchmarks/gpu.sh."""
