# Two commands for a newcomer: `make demo` and `make test`. Each makes the environment first, once.
PYTHON ?= python3
PY := .venv/bin/python
# Newer than everything it was made from, or made again.
READY := .venv/.ready
SITE_READY := .venv/.ready-site

.PHONY: demo test lint bench docs site gpu clean help

help:  ## these lines
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-6s %s\n", $$1, $$2 }' Makefile

demo: $(READY)  ## train one network four times, torch and jax, hand-written and native: demo/
	$(PY) -m gradlab demo

test: $(READY)  ## the whole suite, on up to four cores
	PYTHONDONTWRITEBYTECODE= $(PY) -m pytest -n auto --maxprocesses 4 --dist worksteal

lint: $(READY)  ## ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

bench: $(READY)  ## time every op, hand-written against native
	$(PY) -m gradlab bench

docs: $(READY)  ## write the table of docs/ops.md and the page of every op anew
	$(PY) -m gradlab.profiling.docs.pages

site: $(SITE_READY)  ## the documentation site, warnings are errors: site/index.html
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

gpu:  ## with CUDA, on what is installed: PART=smoke first; then what is missing: results/<gpu>/
	@PYTHONPATH=. $(if $(wildcard $(READY)),$(PY),$(PYTHON)) -m gradlab.profiling.gpu.run $(PART)

clean:  ## remove the environment and what was made
	rm -rf .venv build dist demo report site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 12) else "gradlab needs Python 3.11 or 3.12, this is %d.%d: make PYTHON=python3.11" % v)'
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	touch $(READY)

$(SITE_READY): $(READY)
	$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	touch $(SITE_READY)
