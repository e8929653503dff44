# Everything needs only python3 (3.11 to 3.13), make and git; the first target that runs installs.
# Paths are relative, since make splits the names of targets at spaces.
PYTHON ?= python3
VENV ?= .venv
OUT ?= reports/local
lang ?= en
JOBS ?= 2
BIN := $(VENV)/bin

# Each worker of the tests has one thread, so that two workers do not share two cores four ways.
PYTEST := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest
# Jupyter refuses to serve as root, which is who one is in a container.
ROOT_MAY := $(if $(filter 0,$(shell id -u)),--allow-root)

.DEFAULT_GOAL := report
.PHONY: help report test test-slow test-full test-gpu test-browser test-all coverage figures-check lint types notebooks lab

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' Makefile

report: $(VENV)/.installed  ## sweep the embedded model and leave a report to open; QUICK=1, lang=zh, OUT=folder
	$(BIN)/python -m qvl_lab report --model tiny $(if $(QUICK),--quick) --lang "$(lang)" --out "$(OUT)"

test: $(VENV)/.installed  ## the fast tests; ARGS="-k word" chooses, JOBS=4 takes four processes
	$(PYTEST) -n $(JOBS) --dist worksteal $(ARGS)

test-slow: $(VENV)/.installed  ## the tests that take more than about three seconds each
	$(PYTEST) -n $(JOBS) --dist worksteal -m 'slow and not gpu and not browser' $(ARGS)

test-full: $(VENV)/.installed  ## the long forms of tests: half an hour, nothing beside them
	$(PYTEST) -m 'full and not gpu and not browser' $(ARGS)

test-gpu: $(VENV)/.installed  ## the tests that need a CUDA device
	$(PYTEST) -m gpu $(ARGS)

test-browser: $(VENV)/.installed  ## the tests that drive Chromium (apt-get install chromium)
	$(PYTEST) -m browser $(ARGS)

test-all: $(VENV)/.installed  ## every test that this machine can run
	$(PYTEST) -m '' $(ARGS)

coverage: $(VENV)/.installed  ## the tests of the gate with branch coverage; pyproject.toml names what needs a GPU
	$(PYTEST) -n $(JOBS) -m 'not full and not gpu and not browser' --cov --cov-report term --cov-report html $(ARGS)

figures-check: $(VENV)/.installed  ## recompute the figures of README and reports/README from the run files
	$(BIN)/python reports/figures.py

lint: $(VENV)/.installed  ## ruff: rules and format
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

types: $(VENV)/.installed  ## mypy, strict
	$(BIN)/python -m mypy

notebooks: $(VENV)/.installed  ## execute every notebook; the results go to OUT
	mkdir -p "$(OUT)"
	for n in notebooks/*.ipynb; do \
	  $(BIN)/python -m papermill --no-progress-bar --kernel python3 --cwd "$(OUT)" \
	    "$$n" "$(OUT)/$${n##*/}" || exit 1; done

lab: $(VENV)/.installed  ## JupyterLab on the notebooks
	$(BIN)/python -m jupyterlab --ip 127.0.0.1 $(ROOT_MAY) notebooks

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "qvl_lab needs Python 3.11 to 3.13; say which: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv "$(VENV)"
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev,int8]'
	touch "$@"
