# Two commands on a fresh machine with Python >= 3.11: `make demo` and `make test`.
PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := .venv/bin
SECONDS ?= 60

.PHONY: demo test lint docs fuzz bench bench-static gpu clean

demo: .venv/examples
	$(BIN)/python examples/minilm.py

test: .venv/dev
	$(BIN)/python -m pytest -q -n auto --maxprocesses 4

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/mypy

# The documentation as a site, into build/site.
docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

fuzz: .venv/dev
	$(BIN)/python -m tests.fuzz $(SECONDS)
	$(BIN)/python -m tests.fuzz_attention $(SECONDS)
	$(BIN)/python -m tests.fuzz_casts $(SECONDS)
	$(BIN)/python -m tests.fuzz_language $(SECONDS)
	$(BIN)/python -m tests.fuzz_mpgemm $(SECONDS)
	$(BIN)/python -m tests.fuzz_ops $(SECONDS)
	$(BIN)/python -m tests.fuzz_rings $(SECONDS)

bench: .venv/examples
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks.quantised

bench-static: .venv/test
	$(BIN)/python -m benchmarks.static
	$(BIN)/python -m benchmarks.static_amd
	$(BIN)/python -m benchmarks.issue
	$(BIN)/python -m benchmarks.static_attention
	$(BIN)/python -m benchmarks.static_calls
	$(BIN)/python -m benchmarks.static_weights
	$(BIN)/python -m benchmarks.static_bits
	$(BIN)/python -m benchmarks.order

# On a machine with a GPU: its tests and benchmarks, into benchmarks/gpu-results.md. Elsewhere it fails. For AMD's:
# make gpu TORCH='torch --index-url https://download.pytorch.org/whl/rocm6.4'
gpu: .venv/dev
	$(BIN)/python -m benchmarks.gpu

.venv/bin/python:
	$(PYTHON) -m venv .venv

# torch comes first and alone: with it installed, no other package asks for another build of it.
.venv/%: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	touch $@

clean:
	rm -rf .venv build dist *.egg-info
