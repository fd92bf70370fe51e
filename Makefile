# `make demo` and `make test` do everything from a fresh clone; both need python3, git and make only.
PYTHON ?= python3
VENV := .venv
RUN := runs/shapes_4nfe
export TOKENIZERS_PARALLELISM ?= false
# Freed memory is kept for the next step: without this, sampling spends half its processor time in the kernel.
export MALLOC_MMAP_THRESHOLD_ ?= 1073741824
export MALLOC_TRIM_THRESHOLD_ ?= 2147483648

.PHONY: demo test install clean

install: $(VENV)/installed

$(VENV)/installed: setup.py constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt torch numpy setuptools wheel
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@

demo: install
	$(VENV)/bin/python launch/train.py --config configs/shapes_4nfe.json --resume auto
	$(VENV)/bin/python eval/shapes_run.py --run $(RUN)
	@echo "the report: $(RUN)/report.html"

test: install
	$(VENV)/bin/python -m pytest

clean:
	rm -rf runs cache
