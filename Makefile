# A fresh machine needs Python 3.11+ and make; everything else goes into .venv.
PYTHON ?= python3
LOWEST ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
INSTALL := -m pip install --quiet --disable-pip-version-check
VERSIONS := 3.11 3.12 3.13 3.14
PYTEST := -m pytest -n 2 --dist worksteal -q

.PHONY: demo test test-avx2 lint matrix lowest peers clean

demo: $(READY)  ## train a net by rules of four kinds on the embedded digits, beside backprop, and report
	$(BIN)/bpfree compare digits/mlp --rules dfa,mono_forward,noprop_dt,eggroll --seeds 3 --out runs/demo

test: $(READY)  ## the whole suite but what is marked slow
	$(BIN)/python $(PYTEST)

test-avx2: $(READY)  ## nets and rules as on a processor without AVX-512
	ONEDNN_MAX_CPU_ISA=AVX2 $(BIN)/python $(PYTEST) tests/nets tests/rules tests/local/test_channels_last.py tests/training/test_precision.py

lint: $(READY)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Each in a set-up of its own, .venv-3.12 and so on. A shim of pyenv is found too, but runs only a selected version.
matrix:  ## the suite on each Python that is found; it says which are missing
	@failed=; missing=; \
	for version in $(VERSIONS); do \
		found=; \
		for python in python$$version "$$HOME"/.pyenv/versions/$$version.*/bin/python$$version; do \
			if "$$python" --version >/dev/null 2>&1; then found=$$python; break; fi; \
		done; \
		if [ -z "$$found" ]; then missing="$$missing $$version"; continue; fi; \
		echo "== Python $$version: $$found"; \
		$(MAKE) --no-print-directory test PYTHON="$$found" VENV=.venv-$$version || failed="$$failed $$version"; \
	done; \
	echo "missing:$${missing:- none}; failed:$${failed:- none}"; \
	[ -z "$$failed" ]

# On Python 3.11. Only the suite: style and types are those of the newest versions.
lowest: .venv-lowest/.ready  ## the suite on the lowest versions that pyproject.toml allows
	.venv-lowest/bin/python $(PYTEST)

# Of BioTorch's own dependencies its layers need torch alone. EvoX is under the GPL: for the benchmark, never imported
# by bpfree.
peers: $(READY)  ## what the benchmarks compare with
	$(BIN)/python $(INSTALL) --no-deps biotorch==0.0.16
	PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(BIN)/python $(INSTALL) evotorch==0.6.1 evox==1.4.0

clean:
	rm -rf $(VENV) .venv-* runs .pytest_cache .mypy_cache .ruff_cache

# PIP_CONSTRAINT reaches the isolated build environment too, which -c does not.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(BIN)/python $(INSTALL) -e '.[dev]'
	touch $@

.venv-lowest/.ready: pyproject.toml constraints-lowest.txt
	$(LOWEST) -m venv .venv-lowest
	PIP_CONSTRAINT=$(CURDIR)/constraints-lowest.txt .venv-lowest/bin/python $(INSTALL) -e '.[dev]' click pyparsing setuptools
	touch $@
