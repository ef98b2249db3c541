# Every target sets up its own virtual environment first; nothing needs to be installed by hand.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo test test-long test-slow doctest docs docs-site coverage lint bench clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/shoal demo --out runs/demo

# Two workers with one thread each: most tests are too small for two threads to help. Each has half
# of the tests, and what is left of the other's half when it has done its own. A worker that dies, in
# a crash or over the time limit of pyproject.toml, is not replaced: the run ends, and names its test.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --max-worker-restart=0
MARKS := not slow and not long

test: $(STAMP)
	$(PYTEST) -m "$(MARKS)" $(TESTS)

# Whole commands, processes, exporters and large networks.
test-long: $(STAMP)
	$(PYTEST) -m "long and not slow" $(TESTS)

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow -o faulthandler_timeout=7200

# All examples: in docstrings and on pages; `make test` runs those of public names and the quick pages.
doctest: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --doctest-modules src/shoal \
	  tests/test_contributing.py tests/test_pages.py

# docs/options.md from the classes that define the options.
docs: $(STAMP)
	$(BIN)/python docs/options.py

# The documentation as a site in build/site; a link that leads nowhere is an error.
docs-site: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

$(VENV)/.docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@

# Coverage with a floor for each room.
coverage: $(STAMP)
	$(PYTEST) -m "not slow" --cov=shoal --cov-report=json
	$(BIN)/python .ci/coverage.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)
	$(BIN)/python benchmarks/entropy_pass.py

clean:
	rm -rf $(VENV) runs build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache coverage.json .coverage
