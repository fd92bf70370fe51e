# Every target works from a fresh clone and needs only python3 (3.11 or newer), git and make.
#   make demo    distil the embedded teacher and score the student
#   make test    the whole test suite; make quick: the tests that are not marked slow
#   make lint    ruff, mypy and the share of public names that have a docstring
#   make docs    build the documentation into site/; a broken link or anchor is an error
#   make clean   delete the built documentation
#   make lowest  the quick suite with the lowest versions that setup.py allows
PYTHON ?= python3
VENV := .venv
LOWEST := .venv-lowest
RUN := runs/shapes_4nfe
export TOKENIZERS_PARALLELISM ?= false
# Number of test processes, each with one thread. A process may need 6 GB of memory.
WORKERS ?= 2
PYTEST := -m pytest --numprocesses $(WORKERS) --dist worksteal
# Keep freed memory for the next step. Otherwise sampling spends half of its processor time in the kernel.
export MALLOC_MMAP_THRESHOLD_ ?= 1073741824
export MALLOC_TRIM_THRESHOLD_ ?= 2147483648

.PHONY: demo test quick lint docs lowest install clean

install: $(VENV)/installed

$(VENV)/installed: setup.py constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt torch numpy setuptools wheel
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: install
	$(VENV)/bin/python launch/train.py --config configs/shapes_4nfe.json --set evaluate={} --resume auto
	$(VENV)/bin/python eval/shapes_run.py --run $(RUN)
	@echo "the report: $(RUN)/report.html"

test: install
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(VENV)/bin/python $(PYTEST)

quick: install
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(VENV)/bin/python $(PYTEST) -m "not slow"

lint: install
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/interrogate tdmvid
	$(VENV)/bin/mypy

docs: install
	NO_MKDOCS_2_WARNING=1 PYTHONPATH=. $(VENV)/bin/mkdocs build --quiet --strict
	@echo "the documentation: site/index.html"

lowest: $(LOWEST)/installed
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(LOWEST)/bin/python $(PYTEST) -m "not slow"

$(LOWEST)/installed: setup.py constraints-lowest.txt
	test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --constraint constraints-lowest.txt torch numpy setuptools wheel
	$(LOWEST)/bin/python -m pip install --quiet --constraint constraints-lowest.txt --editable ".[test]"
	touch $@

clean:
	rm -rf site
