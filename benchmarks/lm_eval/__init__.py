"""The export scored by lm-evaluation-harness, on the held-out text that the pipeline itself was evaluated on."""
