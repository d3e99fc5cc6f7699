# make install: set up what a run needs.  make repro: set up and run the pipeline.
# make test: set up and run the tests.  make check: lint, types, layers.
# make test-faults: many tries of each fault that a run survives, and a table of them; then broken
#   inputs by the thousand (python -m tests.fuzz), and a table of those; some 20 minutes on two cores.
# make bench: how fast it is beside others, some 40 minutes on two cores; make bench-quick: the short form, three minutes.
#   NANOGPT=, LITGPT= and BOOK= name clones of those, to compare with; PIPELINE_TEST_DATA= the folder of texts.
# make generated: what is made from params.yaml and its types: the preset tiny, params.schema.json, docs/params.md.
# Plain pip and python3 are used, so pip's own settings (index, proxy, constraints) are honoured.

PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
INSTALLED := $(VENV)/.installed
DEVELOPED := $(VENV)/.developed

export PATH := $(BIN):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: repro install test test-faults bench bench-quick check generated setup

repro: $(INSTALLED)
	python -m pipeline lock
	dvc repro
	@test -n "$$VIRTUAL_ENV" || echo 'before `pipeline` commands: source $(VENV)/bin/activate'

test: $(DEVELOPED)
	python -m pytest --numprocesses logical --maxprocesses 4 --dist worksteal

test-faults: $(DEVELOPED)
	python -m pytest -m faults --long
	OMP_NUM_THREADS=1 python -m tests.fuzz --seconds 300

bench: $(DEVELOPED)
	python -m benchmarks

bench-quick: $(DEVELOPED)
	python -m benchmarks --quick

check: $(DEVELOPED)
	ruff check .
	ruff format --check .
	mypy
	lint-imports

generated: $(DEVELOPED)
	cp params.yaml pipeline/params/presets/tiny.yaml
	python -m pipeline schema

install: $(INSTALLED)

setup: $(DEVELOPED)

# What a run needs, and what the tests, the checks and the benchmarks need beside it.
$(INSTALLED): EXTRAS := huggingface,parquet,zstd,documents
$(DEVELOPED): EXTRAS := dev

$(INSTALLED) $(DEVELOPED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or later is needed, this is " + sys.version.split()[0] + ": set PYTHON=/path/to/python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo 'installing into $(VENV): a minute or two, and about 1.5 GB'
	@python -m pip install --quiet --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $@
