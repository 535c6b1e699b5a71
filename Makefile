# make demo: the five notebooks on the embedded demo    make test: ruff and all tests
PYTHON ?= python3
BIN := .venv/bin
export HF_HUB_OFFLINE := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test bench browser soak strip lab base
.DEFAULT_GOAL := demo

.venv/installed: requirements.txt tests/requirements.txt tests/constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing into .venv (a few minutes, once)"
	$(BIN)/python -m pip install -q -r tests/requirements.txt -c tests/constraints.txt
	touch $@

demo: .venv/installed
	$(BIN)/python -m helpers.batch demo --preset demo

test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest

bench: .venv/installed
	$(BIN)/python -m tests.benchmarks.captions
	$(BIN)/python -m tests.benchmarks.demo
	$(BIN)/python -m tests.benchmarks.sampling

browser: .venv/installed
	$(BIN)/python -m pip install -q -r tests/requirements-browser.txt
	$(BIN)/python -m tests.browser.walk
	$(BIN)/python -m tests.browser.review
	$(BIN)/python -m tests.browser.box

soak: .venv/installed
	$(BIN)/python -m pytest -m soak

strip: .venv/installed
	$(BIN)/nbstripout --keep-id --extra-keys "metadata.papermill cell.metadata.papermill cell.metadata.execution" notebooks/*.ipynb

lab: .venv/installed
	$(BIN)/jupyter lab --notebook-dir .

# train the tiny base model again from its seed (hours of two cores)
base: .venv/installed
	$(BIN)/python -m helpers.demo.pretrain
