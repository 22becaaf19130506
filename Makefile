# Everything that this project does has a target here; `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

CACHE := $(or $(TRITON_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/triton-on-kubernetes)
REQUIREMENTS := requirements.txt k8s-tests/requirements.txt
VENV_KEY := $(shell cat $(REQUIREMENTS) <(python3 -V) | sha256sum | cut -c1-12)
VENV := $(CACHE)/venv-$(VENV_KEY)
PY := .venv/bin/python
export PYTHONPATH := k8s-tests

.PHONY: help
help: ## List the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: venv
venv: $(VENV)/.complete ## Install the Python environment (cached by the content of the requirements)
	@ln -sfn $(VENV) .venv

$(VENV)/.complete: $(REQUIREMENTS)
	@scripts() { PYTHONPATH= "$$@"; }; \
	test -e $@ && touch $@ && exit 0; \
	echo "venv: installing the Python environment into $(VENV) (1 to 3 min)" >&2; \
	rm -rf $(VENV) && mkdir -p $(CACHE) && python3 -m venv $(VENV); \
	start=$$SECONDS; \
	scripts $(VENV)/bin/pip install --quiet --no-cache-dir --disable-pip-version-check -r k8s-tests/requirements.txt & pid=$$!; \
	while kill -0 $$pid 2>/dev/null; do \
	  for _ in 1 2 3 4 5 6 7 8; do kill -0 $$pid 2>/dev/null || break; sleep 1; done; \
	  echo "venv: $$((SECONDS - start)) s, $$(du -sm $(VENV) | cut -f1) MB" >&2; done; \
	wait $$pid && touch $@
