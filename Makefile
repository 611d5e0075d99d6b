# make demo                      the whole job on the music of tests/data
# make demo CORPUS=/path/to/music   the same on your own folder
# make demo PROBE=no             without the probing suite, which downloads Debian packages (300 MB)
# make check                     format, lint and types: under a minute
# make test                      the test suite: at most 8 minutes on two cores
# make test-fast                 the part of it that starts no process: under 90 seconds
# make gpu                       what a GPU must show, in under 25 minutes: tests, labelling, steps, a run; runs/gpu/report.md
# make test-transformers-4        exports opened by the last transformers 4.x
# make probe-suite SIZE=small OUT=runs/suite   the probing suite: labelled music, made from packages anyone can get
# make corpus                    about 6.6 hours of freely licensed music, from Debian packages, into corpus/
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
CORPUS ?= tests/data/music
PROBE ?= yes
SIZE ?= small
OUT ?= runs/suite-$(SIZE)
# Python keeps what it compiles, also where the environment says otherwise: to import all tests takes a second process 10 s instead of 17.
PYTEST := env -u PYTHONDONTWRITEBYTECODE $(VENV)/bin/python -m pytest
# A file's tests share its fixtures, so they stay together; files come in the order of tests/conftest.py, the slow ones first.
ON_TWO_CORES := --numprocesses 2 --dist loadfile --no-loadscope-reorder
PACKAGES := wesnoth-1.16-music planetblupi-music-ogg singularity-music hyperrogue-music asc-music

.PHONY: check demo gpu probe-suite test test-fast test-transformers-4 corpus install

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version) if sys.version_info < (3, 11) else None'
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --constraint constraints.txt --editable '.[label,features,probe,suite,openvino,bench,s3,dev]'
	$(VENV)/bin/pip install --quiet --constraint constraints.txt --no-deps tinysoundfont
	touch $@

check: install
	$(VENV)/bin/ruff format --check pipeline model jobs tests setup.py
	$(VENV)/bin/ruff check pipeline model jobs tests setup.py
	mkdir -p .typing/mert_foundry
	for folder in pipeline model jobs; do ln -sfn "$(CURDIR)/$$folder" .typing/mert_foundry/$$folder; done
	$(VENV)/bin/mypy

demo: install
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" python -m mert_foundry.jobs.demo "$(CORPUS)" --probe "$(PROBE)"

test: install
	$(PYTEST) -m 'not gpu' $(ON_TWO_CORES)

test-fast: install
	$(PYTEST) -m 'not gpu and not process and not slow' $(ON_TWO_CORES)

gpu: install
	$(VENV)/bin/mert bench gpu runs/gpu

test-transformers-4: install
	$(VENV)/bin/pip install --quiet --upgrade --target .transformers-4 'transformers>=4.57,<5'
	PYTHONPATH=.transformers-4 $(VENV)/bin/python -c 'import transformers; assert transformers.__version__.startswith("4.")'
	PYTHONPATH=.transformers-4 $(VENV)/bin/python -m pytest tests/test_export.py tests/test_export_command.py

probe-suite: install
	$(VENV)/bin/mert suite $(OUT) --size $(SIZE)

corpus:
	mkdir -p corpus/packages
	cd corpus/packages && apt-get download $(PACKAGES)
	for package in $(PACKAGES); do dpkg -x corpus/packages/$${package}_*.deb corpus/$$package; done
	rm -r corpus/packages
