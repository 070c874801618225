# The two commands of the README, demo and test. Both need nothing but Python 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin
SERVE_PORT ?= 8000

.PHONY: demo test test-slow check docs set-up clean

demo: set-up
	$(BIN)/python -m fewstep.demo --port $(SERVE_PORT)

test: set-up check
	bash scripts/system-packages
	$(BIN)/python -m pytest -m "not slow"

# What `test` leaves out, as it takes longer than all the rest: crashes, trainings, exports.
test-slow: set-up
	bash scripts/system-packages
	$(BIN)/python -m pytest -m slow

check: set-up
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint --failure-threshold warning Dockerfile deploy/postgres/Dockerfile
	$(BIN)/shellcheck .ci/run scripts/system-packages deploy/*.sh deploy/*/*.sh

docs: set-up
	$(BIN)/python -m scripts.reference
	$(BIN)/mkdocs build --strict

set-up: .venv/complete

# torch first and on its own: an index that has a CPU build then is not asked for anything larger.
.venv/complete: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[distill,ray,tensorrt-rtx,postgresql,s3,plot,docs,dev]'
	touch $@

clean:
	rm -rf .venv demo runs site
