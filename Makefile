# make demo                      the whole job on the music of tests/data
# make demo CORPUS=/path/to/music   the same on your own folder
# make test                      the test suite
# make corpus                    about 6.6 hours of freely licensed music, from Debian packages, into corpus/
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
CORPUS ?= tests/data/music
PACKAGES := wesnoth-1.16-music planetblupi-music-ogg singularity-music hyperrogue-music asc-music

.PHONY: demo test corpus install

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version) if sys.version_info < (3, 11) else None'
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --constraint constraints.txt --editable '.[label,s3,dev]'
	touch $@

demo: install
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" python -m jobs.demo "$(CORPUS)"

test: install
	$(VENV)/bin/python -m pytest -m 'not gpu'

corpus:
	mkdir -p corpus/packages
	cd corpus/packages && apt-get download $(PACKAGES)
	for package in $(PACKAGES); do dpkg -x corpus/packages/$${package}_*.deb corpus/$$package; done
	rm -r corpus/packages
