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

.PHONY: demo gallery test test-servers install browser servers check donors share pull push sound gc lock audit

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

# Servers of Prefect, SSH, S3 and HTTP, with clones that act as machines: many minutes.
test-servers: install servers
	python -m pytest -m servers

# The report is checked in a real browser.
browser:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || { \
	  test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -qq && apt-get install -qq -y chromium >/dev/null; } || \
	  echo "no Chromium found and none could be installed: the test of the report's page will be skipped"

# Shared caches are tested over a real SSH server, on loopback; installing it must not start it.
servers:
	@command -v sshd >/dev/null || test -x /usr/sbin/sshd || { \
	  test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -qq && \
	  RUNLEVEL=1 apt-get install -qq -y --no-install-recommends openssh-server >/dev/null; } || \
	  echo "no SSH server found and none could be installed: its tests will be skipped"

check: install
	ruff check . && ruff format --check . && pyright

# Trains the donors in git anew: minutes on a GPU, hours without. Then commit data/donors and dvc.lock.
donors: install
	dvc unfreeze $(DONORS)
	dvc repro specialize further; status=$$?; dvc freeze $(DONORS); exit $$status

# make share REMOTE=s3://BUCKET/DIR [ENDPOINT=https://...] [KEY=FILE] [CACHE=DIR]: docs/caches.md says more.
share: install
	@python -m flows.share $(if $(REMOTE),'$(REMOTE)') $(if $(ENDPOINT),--endpoint '$(ENDPOINT)') $(if $(KEY),--key '$(KEY)') $(if $(CACHE),--cache '$(CACHE)')

pull push: install
	@python -m flows.transfer $@ $(TARGETS)

# Reads every object of this commit at the remote; MEND=1 replaces what is damaged there and whole here.
sound: install
	@python -m flows.soundness $(if $(MEND),--mend)

# Removes what no branch, tag, experiment or workspace uses; CLOUD=1 at the remote too, DRY=1 only says what.
gc: install
	@python -m flows.garbage $(if $(CLOUD),--cloud) $(if $(DRY),--dry) $(if $(CLONES),--clones $(CLONES))

# Pins the closure of requirements.in by version and digest. torch and what it brings for a GPU differ by machine.
lock: install
	env -u UV_FIND_LINKS -u PIP_FIND_LINKS $(VENV)/bin/uv pip compile --quiet --universal --python-version 3.11 \
	  --generate-hashes --no-annotate --no-header --output-file constraints.txt requirements.in
	awk '/^[a-z]/ { kept = !/^(nvidia-|cuda-|triton)/; bare = /^torch==/ } bare { sub(/ *\\$$/, "") } kept && !(bare && /--hash/)' \
	  constraints.txt > constraints.txt.partial && mv constraints.txt.partial constraints.txt

# Known vulnerabilities of what is pinned, less those that audit.txt accepts with a reason; it asks the network.
audit: install
	grep -v '^torch==' constraints.txt > $(VENV)/audit.txt
	uvx pip-audit --strict --disable-pip --no-deps --requirement $(VENV)/audit.txt $$(sed -n 's/^\([A-Z][A-Z0-9-]*\) .*/--ignore-vuln \1/p' audit.txt)
