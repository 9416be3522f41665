# You need Python 3.11 or newer and make. Everything else is installed into .venv.
PYTHON ?= python3
LOWEST ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
INSTALL := -m pip install --quiet --disable-pip-version-check
VERSIONS := 3.11 3.12 3.13 3.14
PYTEST := -m pytest -n 2 --dist worksteal -q

.PHONY: demo test test-avx2 lint docs docs-serve matrix lowest peers clean

demo: $(READY)  ## train a net with rules of four kinds and with backprop on the digits, and write a report
	$(BIN)/bpfree compare digits/mlp train.epochs=20 --rules dfa,mono_forward,noprop_dt,eggroll --seeds 3 --out runs/demo
	@echo "Draw a digit and see what each of these nets answers: $(BIN)/bpfree serve runs/demo"

test: $(READY)  ## run all tests except those marked slow
	$(BIN)/python $(PYTEST)

test-avx2: $(READY)  ## run the tests of nets and rules as on a processor without AVX-512
	ONEDNN_MAX_CPU_ISA=AVX2 $(BIN)/python $(PYTEST) tests/nets tests/rules tests/local/test_channels_last.py tests/training/test_precision.py

lint: $(READY)  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Strict: a broken link or anchor, a page outside the nav and a public name without documentation are errors. Not with
# --quiet, which hides warnings from --strict.
docs: $(READY)  ## build the site of the documentation; open site/index.html, no server is needed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: $(READY)  ## show the site while you write; a page that you save is built again
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

# Each Python has its own environment: .venv-3.12 and so on. The loop calls `--version`, because pyenv puts a shim for every
# installed version on the path, and a shim runs only if its version is selected.
matrix:  ## run the tests on each Python from 3.11 to 3.14 that is installed; print which are missing
	@failed=; missing=; \
	for version in $(VERSIONS); do \
		interpreter=; \
		for python in python$$version "$$HOME"/.pyenv/versions/$$version.*/bin/python$$version; do \
			if "$$python" --version >/dev/null 2>&1; then interpreter=$$python; break; fi; \
		done; \
		if [ -z "$$interpreter" ]; then missing="$$missing $$version"; continue; fi; \
		echo "== Python $$version: $$interpreter"; \
		$(MAKE) --no-print-directory test PYTHON="$$interpreter" VENV=.venv-$$version || failed="$$failed $$version"; \
	done; \
	echo "missing:$${missing:- none}; failed:$${failed:- none}"; \
	[ -z "$$failed" ]

# It uses Python 3.11 and runs only the tests. Style and types are checked with the newest versions.
lowest: .venv-lowest/.ready  ## run the tests with the lowest versions that pyproject.toml allows
	.venv-lowest/bin/python $(PYTEST)

# BioTorch is installed without its dependencies, because its layers need only torch. EvoX has the licence GPL. Only a
# benchmark uses it; bpfree never imports it.
peers: $(READY)  ## install the libraries that the benchmarks compare with
	$(BIN)/python $(INSTALL) --no-deps biotorch==0.0.16
	PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(BIN)/python $(INSTALL) evotorch==0.6.1 evox==1.4.0

clean:
	rm -rf $(VENV) .venv-* runs site .pytest_cache .mypy_cache .ruff_cache

# PIP_CONSTRAINT is used instead of -c, because -c does not reach the isolated build environment.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(BIN)/python $(INSTALL) -e '.[dev]'
	touch $@

.venv-lowest/.ready: pyproject.toml constraints-lowest.txt
	$(LOWEST) -m venv .venv-lowest
	PIP_CONSTRAINT=$(CURDIR)/constraints-lowest.txt .venv-lowest/bin/python $(INSTALL) -e '.[test]' click pyparsing setuptools
	touch $@
