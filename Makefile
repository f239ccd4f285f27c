# `make demo` runs the main job on a real model, `make test` the tests; both install what is missing.
PY ?= python3
VENV := .venv
DONORS := $(addprefix specialize@,sibling units dates letters calculator moe) further@dates_moe
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
export UV_PYTHON_DOWNLOADS := never
export DVC_NO_ANALYTICS := 1
export DO_NOT_TRACK := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export HF_HUB_DISABLE_TELEMETRY := 1
# Without bytecode every stage would compile transformers anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo gallery test install browser check donors

install: $(VENV)/.installed

$(VENV)/.installed: requirements.in constraints.txt
	$(PY) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet 'uv>=0.9'
	$(VENV)/bin/uv pip install --quiet --compile-bytecode --python $(VENV)/bin/python -c constraints.txt -r requirements.in
	touch $@

demo: install
	python -m flows.pipeline report cards metrics plots_page

# Every way to graft, each variant beside its control.
gallery: install
	python -m flows.pipeline gallery

test: install browser
	python -m pytest

# The report is checked in a real browser.
browser:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || { \
	  test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -qq && apt-get install -qq -y chromium >/dev/null; } || \
	  echo "no Chromium found and none could be installed: the test of the report's page will be skipped"

check: install
	ruff check . && ruff format --check . && pyright

# Trains the donors in git anew: minutes on a GPU, hours without. Then commit data/donors and dvc.lock.
donors: install
	dvc unfreeze $(DONORS)
	dvc repro specialize further; status=$$?; dvc freeze $(DONORS); exit $$status
