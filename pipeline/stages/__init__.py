"""The five stages, each a plain function: run(params, paths)."""
