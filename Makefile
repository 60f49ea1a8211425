# `make demo` and `make test` do all the set-up that they need. An active virtual environment is
# used as it is, and so is a torch that is already in it; otherwise .venv is made here.

TORCH ?= torch==2.13.0
PROMPT ?= a potted plant
OUT ?= demo

ifdef VIRTUAL_ENV
ENV := $(VIRTUAL_ENV)
else
ENV := $(CURDIR)/.venv
endif
BIN := $(ENV)/bin
STAMP := $(ENV)/.fastrepulse

.PHONY: demo test lint figures clean

demo: $(STAMP)-run
	$(BIN)/fastrepulse demo --prompt "$(PROMPT)" --out $(OUT)

test: $(STAMP)-test
	$(BIN)/pytest

lint: $(STAMP)-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv build dist *.egg-info demo out

$(BIN)/python:
	python3 -m venv $(ENV)

$(STAMP)-run: $(BIN)/python pyproject.toml
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/python -m pip install "$(TORCH)"
	$(BIN)/python -m pip install -e .
	touch $@

$(STAMP)-test $(STAMP)-lint: $(STAMP)-%: $(STAMP)-run
	$(BIN)/python -m pip install -e ".[$*]"
	touch $@
