# Every target sets up what it needs in .venv by itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Real labelled volumes, where there are any; tests that need them are skipped without.
DATA ?= ../shared/data

# A CT for the benchmark of inference.
CT := $(firstword $(wildcard $(DATA)/abdomen_ct_unlabelled/images/*.nii.gz))

# A dataset for the benchmarks of training.
HIPPOCAMPUS := $(wildcard $(DATA)/hippocampus)

.PHONY: demo test lint bench clean

demo: $(STAMP)
	$(BIN)/uxnet demo -o demo

test: $(STAMP) lint
	$(BIN)/pytest tests -n auto --dist loadfile $(if $(wildcard $(DATA)),--data $(DATA)) $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python benchmarks/training_step.py
	$(BIN)/python benchmarks/networks.py
	$(if $(CT),$(BIN)/python benchmarks/inference.py $(CT))
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/fuzz.py
	$(BIN)/python benchmarks/plan_memory.py
	$(if $(HIPPOCAMPUS),$(BIN)/python benchmarks/data_path.py $(HIPPOCAMPUS) --cases 64 --rounds 9)
	$(if $(HIPPOCAMPUS),$(BIN)/python benchmarks/training.py $(HIPPOCAMPUS))

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) demo
