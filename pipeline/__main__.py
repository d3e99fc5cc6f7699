"""`python -m pipeline STAGE`: what dvc.yaml runs, so that a copy of the project runs the copy's code."""

from pipeline.cli import main

main()
