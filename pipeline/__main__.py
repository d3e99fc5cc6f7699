"""`python -m pipeline STAGE`: what dvc.yaml runs, so that a copy of the project runs the copy's code."""

import sys

try:
    from pipeline.cli import main

    main()
except ModuleNotFoundError as error:
    if str(error.name).startswith("pipeline"):
        raise
    lacks = f"{sys.executable} lacks the package {error.name}"
    sys.exit(f"error: {lacks}: run `source .venv/bin/activate`, after `make install`")
