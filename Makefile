# Everything needs only python3 (3.11 or newer), make and git; the first target that runs installs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= reports/local

.PHONY: report test lint types notebooks lab

report: $(VENV)/.installed  ## sweep the embedded model and leave a report to open
	$(BIN)/qvl-lab report --model tiny --out $(OUT)

test: $(VENV)/.installed  ## the fast tests; all of them: make test ARGS="-m ''"
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed
	$(BIN)/mypy

notebooks: $(VENV)/.installed  ## execute every notebook into reports/local
	mkdir -p $(OUT)
	cd $(OUT) && for n in $(CURDIR)/notebooks/*.ipynb; do \
	  $(abspath $(BIN))/papermill --no-progress-bar --kernel python3 $$n $$(basename $$n) || exit 1; done

lab: $(VENV)/.installed
	$(BIN)/jupyter lab --ip 127.0.0.1 notebooks

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "qvl_lab needs Python 3.11 or newer; say which: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev,int8]'
	touch $@
