# Sets up, tries and tests carp_plugin. `make` alone lists the targets.
#
# Everything lives in .venv (solo-learn's release 1.0.2) or .venv-current (current solo-learn), made from nothing.
# A venv counts as whole only once .complete stands in it, and knows its host by the line in .host.

PYTHON     ?= python3
SOLO_LEARN ?=
ARGS       ?=

RELEASE  := solo-learn==1.0.2
SOLO_GIT ?= git+https://github.com/vturrisi/solo-learn@9187ea39c2c3f43c455ab06664d2b019a9802954

# Which host: its release (no SOLO_LEARN), its pinned commit (git), or a checkout (a path).
ifeq ($(strip $(SOLO_LEARN)),)
VENV         := .venv
HOST         := $(RELEASE)
HOST_INSTALL  = $(PIP) install --no-deps "$(HOST)"
else ifeq ($(SOLO_LEARN),git)
VENV         := .venv-current
HOST         := $(SOLO_GIT)
HOST_INSTALL  = $(PIP) install --no-deps --no-build-isolation "$(HOST)"
else
VENV         := .venv-current
HOST         := $(shell cd "$(SOLO_LEARN)" 2>/dev/null && test -f solo/methods/base.py && test -f solo/args/pretrain.py && pwd)
HOST_INSTALL  = printf '%s\n' "$(HOST)" > "$(SITE)/solo_learn_checkout.pth"
# Nothing is written into the user's checkout, not even compiled modules.
export PYTHONDONTWRITEBYTECODE := 1
ifeq ($(HOST),)
$(error SOLO_LEARN=$(SOLO_LEARN) is not a checkout of current solo-learn: solo/methods/base.py and solo/args/pretrain.py are not both there)
endif
endif

BIN  := $(VENV)/bin/python
PIP  := $(BIN) -m pip --disable-pip-version-check
SITE  = $(shell $(BIN) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

.DEFAULT_GOAL := help
.PHONY: help setup demo compare test lint format clean distclean

help: ## list the targets
	@echo "make TARGET [ARGS=...] [SOLO_LEARN=/path/to/checkout or git] [PYTHON=python3.x]"
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' Makefile

setup: $(VENV)/.complete ## install everything into .venv (.venv-current with SOLO_LEARN), if it is not there yet
	@test "$$(cat $(VENV)/.host 2>/dev/null)" = "$(HOST)" || { \
	    echo "Putting solo-learn into $(VENV): $(HOST)" && \
	    rm -f $(VENV)/.host "$(SITE)/solo_learn_checkout.pth" && \
	    $(PIP) uninstall -q -y solo-learn 2>/dev/null && \
	    $(HOST_INSTALL) && \
	    printf '%s\n' "$(HOST)" > $(VENV)/.host; \
	} || { \
	    echo "solo-learn could not be installed, see the message above; run the same make again to retry." >&2; \
	    exit 1; \
	}
	@echo "$(VENV) is ready: $$($(BIN) --version), $(HOST)"

demo: setup ## train CARP on the embedded photographs, on any machine (ARGS="max_epochs=1" overrides the config)
	$(BIN) main_pretrain.py --config-name carp.yaml $(ARGS)

compare: setup ## compare CARP with BYOL, SwAV and Barlow Twins on the photographs, three seeds each: an hour on two cores
	$(BIN) main_compare.py --config-name photos.yaml $(ARGS)

test: setup ## run the tests (ARGS="tests/losses -k golden" picks some, -n0 in one process)
	$(BIN) -m pytest --timeout=600 -n auto --maxprocesses=4 --dist=loadfile $(ARGS)

lint: setup ## check style, format and types
	$(BIN) -m ruff check .
	$(BIN) -m ruff format --check .
	$(BIN) -m mypy

format: setup ## sort imports and format the code in place
	$(BIN) -m ruff check --fix-only .
	$(BIN) -m ruff format .

clean: ## remove caches and build products
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path './.venv*' -prune -o -type d -name __pycache__ -exec rm -rf {} +

distclean: clean ## remove the venvs too (needed before another PYTHON is chosen)
	rm -rf .venv .venv-current

# A venv that was never finished is made anew; a finished one is brought up to date when one of these files changed.
$(VENV)/.complete: setup.cfg setup.py pyproject.toml constraints.txt
	@"$(PYTHON)" -c "" 2>/dev/null || { \
	    echo "'$(PYTHON)' does not run here: install Python 3.10 or later, or name one with PYTHON=..." >&2; exit 2; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	    echo "carp_plugin needs Python 3.10 or later, and $(PYTHON) is $$("$(PYTHON)" --version 2>&1): name another with PYTHON=..." >&2; \
	    exit 2; }
	@if test -e $@; then \
	    echo "Bringing $(VENV) up to date with setup.cfg, setup.py, pyproject.toml and constraints.txt."; \
	else \
	    echo "Setting up $(VENV): about 135 packages (on Linux, with CUDA libraries and DALI: 3.3 GB to download, 7 GB on disk)." && \
	    "$(PYTHON)" -m venv --clear $(VENV); \
	fi
	@$(PIP) install -c constraints.txt wheel "setuptools<81" && \
	$(PIP) install -c constraints.txt --no-build-isolation -e ".[dev,dali,slurm]" || { \
	    echo "The installation did not finish: pip says why above, and what it calls a conflict is most often a package index that" \
	        "was not reached. Check the network, then run the same make again." >&2; \
	    exit 1; \
	}
	@touch $@
