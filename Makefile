# make demo: the five notebooks on the embedded demo    make test: ruff and all tests
PYTHON ?= python3
BIN := .venv/bin
COLAB := .venv/colab/bin
SITE := "import sysconfig; print(sysconfig.get_path('purelib'))"
# what is run with Colab's versions alone, and with them a second time
COLABS := tests/test_walk.py tests/test_starts.py tests/test_replica.py
WALK := $(COLABS) tests/test_malicious.py $(addprefix \
	tests/test_train_methods.py::,test_eight_bit_adam_trains_and_goes_on_or_says_what_to_set \
	test_attention_without_xformers_with_it_and_where_it_cannot_run)
# begun first, so that nobody waits for the longest at the end
LONG := tests/test_older_copies.py tests/test_secrets.py
# a kernel binds its ports a second after they were chosen: another test's may have taken one (nteract/papermill#511)
NOT_BEGUN := "Kernel (died before replying|didn't respond)"
# three tests at a time on two cores, each on one thread: some wait for a disk or a clock
MANY := -n 3 --dist worksteal --reruns 2 --only-rerun $(NOT_BEGUN)
export HF_HUB_OFFLINE := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test replica bench browser gallery figures soak strip lab base
.DEFAULT_GOAL := demo

.venv/installed: requirements.txt tests/requirements.txt tests/constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing into .venv (a few minutes, once)"
	$(BIN)/python -m pip install -q -r tests/requirements.txt -c tests/constraints.txt
	touch $@

# Colab's own versions, laid over .venv: what is not in them comes from there
.venv/colab/installed: .venv/installed tests/constraints-colab.txt tests/constraints-gpu.txt
	test -x $(COLAB)/python || $(BIN)/python -m venv --without-pip .venv/colab
	$(BIN)/python -c $(SITE) > "$$($(COLAB)/python -c $(SITE))/ordinary.pth"
	$(COLAB)/python -m pip install -q --no-deps -r tests/constraints-colab.txt -r tests/constraints-gpu.txt
	touch $@

demo: .venv/installed
	$(BIN)/python -m helpers.batch demo --preset demo

test: .venv/installed .venv/colab/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest $(MANY) $(LONG) tests $(addprefix --ignore=,$(COLABS))
	$(COLAB)/python -m pytest $(MANY) $(WALK)

# the same walk on each of Colab's images as it is: its own Python (pyenv's), torch and libraries, some 8 GB of disk
replica: .venv/installed
	$(BIN)/python -m tests.replica $(MANY) $(WALK)

bench: .venv/installed
	$(BIN)/python -m tests.benchmarks.captions
	$(BIN)/python -m tests.benchmarks.demo
	$(BIN)/python -m tests.benchmarks.light
	$(BIN)/python -m tests.benchmarks.mirror
	$(BIN)/python -m tests.benchmarks.minutes
	$(BIN)/python -m tests.benchmarks.sampling
	$(BIN)/python -m tests.benchmarks.sweep
	$(if $(SCRIPT),$(BIN)/python -m tests.benchmarks.train --script $(SCRIPT) --lora-script $(LORA_SCRIPT))

browser: .venv/installed
	$(BIN)/python -m pip install -q -r tests/requirements-browser.txt
	$(BIN)/python -m tests.browser.walk
	$(BIN)/python -m tests.browser.review
	$(BIN)/python -m tests.browser.box
	$(BIN)/python -m tests.browser.folders

# the README's pictures, from runs/demo as make demo left it
gallery: .venv/installed
	$(BIN)/python -m pip install -q -r tests/requirements-browser.txt
	$(BIN)/python -m tools.gallery

# the notebooks' explaining figures; three of them show runs/demo as make demo left it
figures: .venv/installed
	$(BIN)/python -m tools.figures

soak: .venv/installed
	$(BIN)/python -m pytest -m soak

strip: .venv/installed
	$(BIN)/nbstripout --keep-id --extra-keys "metadata.papermill cell.metadata.papermill cell.metadata.execution" notebooks/*.ipynb

lab: .venv/installed
	$(BIN)/jupyter lab --notebook-dir .

# train the tiny base model again from its seed (hours of two cores), and its speed LoRA (minutes)
base: .venv/installed
	$(BIN)/python -m helpers.demo.pretrain
	$(BIN)/python -m helpers.demo.distill
