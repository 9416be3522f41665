# A fresh machine needs Python 3.11+ and make; everything else goes into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint peers clean

demo: $(READY)  ## train a net by rules of four kinds on the embedded digits, beside backprop, and report
	$(BIN)/bpfree compare digits/mlp --rules dfa,mono_forward,noprop_dt,eggroll --seeds 3 --out runs/demo

test: $(READY)  ## the whole suite but what is marked slow
	$(BIN)/python -m pytest -n 2 --dist worksteal -q

lint: $(READY)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Of BioTorch's own dependencies its layers need torch alone. EvoX is under the GPL: for the benchmark, never imported
# by bpfree.
peers: $(READY)  ## what the benchmarks compare with
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps biotorch==0.0.16
	PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check \
		evotorch==0.6.1 evox==1.4.0

clean:
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache

# PIP_CONSTRAINT reaches the isolated build environment too, which -c does not.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@
