# Each target goes from a bare clone to done: it makes .venv first where there is none.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
# A test file stays in one process, which makes its checkpoints and stores once.
IN_PARALLEL := -n logical --maxprocesses 4 --dist loadfile

.PHONY: demo test check docs bench

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,files,bm25,bulk,onnx,plot,serve,inspect,docs,dev]'
	touch $@

demo: $(INSTALLED)
	$(BIN)/unified-embeddings demo

test: $(INSTALLED)
	HF_HUB_OFFLINE=1 $(BIN)/pytest $(IN_PARALLEL)

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	HF_HUB_OFFLINE=1 $(BIN)/pytest $(IN_PARALLEL)

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(INSTALLED)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench,plot]'
	$(BIN)/python benchmarks/run.py $(ARGS)
