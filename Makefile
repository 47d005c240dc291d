## make setup   .venv with everything that runs the package (every target below does this by itself)
## make demo    the whole chain on bundled real images; pictures and numbers in runs/demo
## make test    the test suite (that of the page takes a Chromium, if there is one); ARGS="-k grid" passes options to pytest, ARGS="-m slow" runs the slow ones
## make lint    style
## make types   annotations
## make house   how the code reads, against limits: density, comments, names, the way of a recipe
## make docs    the documentation as a site, in build/docs; the tutorial runs while it is built
## make docs-links  whether the links to elsewhere still lead somewhere (needs the network)
## make bench-sampling   how fast sampling is on this machine, all of docs/performance.md but parallel decoding and training: under an hour, with nothing else running. PEERS_DIR=DIR has checkouts of other libraries; without it the table of them is empty
## make prove   break the code in a copy, one way at a time, and see that the tests notice
## make clean   remove caches and build outputs (runs/ and .venv stay)

# Needs only make and Python 3.11 or newer. Another Python: make demo PYTHON=python3.12
PYTHON ?= python3
ARGS ?=
VENV := .venv/bin/python

.PHONY: help setup demo test lint types house docs docs-links bench-sampling prove clean

help:
	@sed -n 's/^## //p' Makefile

setup:
	@$(PYTHON) scripts/bootstrap.py run

demo: setup
	$(VENV) -m tessella demo --out runs/demo

test: setup-test
	OMP_NUM_THREADS=1 $(VENV) -m pytest -n 2 --dist worksteal -m "not slow" $(ARGS)

lint: setup-test
	$(VENV) -m ruff check .
	$(VENV) -m ruff format --check .

types: setup-test
	$(VENV) -m mypy

house: setup-test
	$(VENV) scripts/house.py --check

# Built anew each time, so that no warning is missed, no old page stays, and the tutorial runs.
docs: setup-docs
	rm -rf build/docs
	$(VENV) -m sphinx -W --keep-going -b html docs build/docs $(ARGS)

docs-links: setup-docs
	rm -rf build/docs-links
	$(VENV) -m sphinx -b linkcheck -D nb_execution_mode=off docs build/docs-links $(ARGS)

# One series on one commit: rows of earlier ones are taken out first.
bench-sampling: setup-test
	rm -f results/sampling.json results/growth.json results/weights.json
	$(VENV) benchmarks/sampling.py
	$(VENV) benchmarks/sampling.py --growth
	$(VENV) benchmarks/sampling.py --big
	$(VENV) benchmarks/weight_storage.py --models digits digits-codes=digits --step --memory transformer pixelcnn++
	$(VENV) scripts/performance_tables.py

prove: setup-test
	$(VENV) scripts/break_contracts.py $(ARGS)

clean:
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: setup-test setup-docs
setup-test:
	@$(PYTHON) scripts/bootstrap.py test

setup-docs:
	@$(PYTHON) scripts/bootstrap.py docs
