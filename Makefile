# The six commands people need. `make` alone lists them.

PYTHON ?= python3
VENV := .venv/bin

help:  ## list these commands
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/make \1\t\2/' | expand -t 12

setup: .venv/ready  ## make .venv with everything that tests and lint need
.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(VENV)/pip install -q -e '.[test]'
	touch $@

up: setup  ## run everything on this machine; Ctrl-C stops it
	$(VENV)/presence up

fast: setup  ## run the fast tests, in under 30 s
	$(VENV)/pytest tests/unit

test: setup  ## run all tests, in about 5 minutes
	$(VENV)/pytest

lint: setup  ## check format, lint and types
	$(VENV)/ruff format --check .
	$(VENV)/ruff check .
	$(VENV)/mypy

docs: setup  ## build the documentation site into site/; a broken link fails
	.ci/docs site

.PHONY: help setup up fast test lint docs
