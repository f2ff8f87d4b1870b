# Every target does its own set-up. PYTHON is any Python from 3.11 on.
PYTHON ?= python3
EXAMPLE ?= lmcache
FOLDER ?= examples/$(EXAMPLE)
SUBJECT ?= examples/fleet/fleet.yaml
THERE ?= examples/fleet/required.yaml
OUTPUT ?= table
# Environments live outside the checkout, so that a fresh clone finds them warm; any of them can be deleted.
CACHE := $(or $(KV_OFFLOAD_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/function-kv-offload)
# One environment for each set of pinned requirements and Python; a line of the set is a file.
render-set := requirements/render.txt
test-set := requirements/test.txt
e2e-set := requirements/test.txt tests/e2e/requirements.txt
conformance-set := requirements/test.txt tests/conformance/requirements.txt tests/conformance/requirements-engines.txt
venv = $(CACHE)/venv-$(1)-$(shell { cat $($(1)-set); $(PYTHON) -V; } | cksum | cut -d' ' -f1)
RENDER := $(call venv,render)
TEST := $(call venv,test)
CONFORMANCE := $(call venv,conformance)
E2E := $(call venv,e2e)
# Of each engine the oldest version that is supported, and the newest; of AIBrix the newest.
SCALE := tests/e2e/test_7_scale.py
ENGINES := vllm-0.11.0 vllm-0.33.0 sglang-0.5.5 sglang-0.5.23 aibrix-0.8.0
COMPILE := uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate

.DEFAULT_GOAL := help
.PHONY: help render plan test lint bench soak conformance e2e scale e2e-tools e2e-up e2e-down packages examples apis versions released requirements

help: ## Show this help.
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

render: $(RENDER)/done ## Print what an example's tier and engine become (EXAMPLE=lmcache, or FOLDER=your own).
	@$(RENDER)/bin/python -m function.render $(FOLDER)

plan: $(RENDER)/done ## Say what a fleet or tier would change (SUBJECT=fleet.yaml THERE=there.yaml OUTPUT=table).
	@$(RENDER)/bin/python -m function.plan $(SUBJECT) $(THERE:%=-e %) -o $(OUTPUT)

test: $(TEST)/done ## Run all tests; builds Crossplane's own tools once, where Go is there.
	@if command -v go >/dev/null; then $(TEST)/bin/python -m tests.tools.build; else echo "no Go here: tests that need Crossplane's own tools are skipped"; fi
	$(TEST)/bin/python -m pytest

lint: $(TEST)/done ## Check style and types.
	$(TEST)/bin/ruff format --check .
	$(TEST)/bin/ruff check .
	$(TEST)/bin/mypy

bench: $(TEST)/done ## Measure RunFunction against the SDK's identity function (BENCH=--check for the gate alone).
	$(TEST)/bin/python -m tests.bench $(BENCH)

soak: $(TEST)/done ## Send it 100,000 requests, and see its memory (10 minutes).
	$(TEST)/bin/python -m tests.bench.soak

conformance: $(CONFORMANCE)/lmcache-0.3.7 $(ENGINES:%=$(CONFORMANCE)/%) ## Run what is rendered: LMCache, Mooncake, etcd, Valkey, and the engines' parsers.
	$(CONFORMANCE)/bin/python -m pytest tests/conformance

e2e-tools: $(E2E)/done ## Build etcd, Kubernetes, Crossplane, its provider, AIBrix's controller and kwok, once (needs Go; 25 minutes).
	$(E2E)/bin/python -m tests.tools.build e2e

e2e: e2e-tools ## Install it on a real control plane with two inference clusters, run, break and heal it (15 minutes).
	$(E2E)/bin/python -m pytest -s --durations=10 tests/e2e --ignore=$(SCALE)

scale: e2e-tools ## Give 300 clusters a tier by a fleet on a real control plane, and let all of them chat (9 minutes).
	$(E2E)/bin/python -m pytest -s --durations=10 $(SCALE)

e2e-up: e2e-tools ## Start these clusters, installed, to look around with kubectl.
	@$(E2E)/bin/python -m tests.e2e up

e2e-down: $(E2E)/done ## End them.
	@$(E2E)/bin/python -m tests.e2e down

packages: $(TEST)/done ## Build the packages into dist/, with RUNTIME=image.tar inside the Function's.
	$(TEST)/bin/python -m tests.tools.packages dist $(RUNTIME)

examples: $(RENDER)/done ## Make the examples' required.yaml and observed files anew.
	$(RENDER)/bin/python -m tests.examples

apis: $(TEST)/done ## Make the parts of the fleet's XRD anew that are the tier's.
	$(TEST)/bin/python -m tests.tools.apis

versions: $(TEST)/done ## Make docs/versions.md anew from the version table.
	$(TEST)/bin/python -m tests.tools.table docs/versions.md

released: $(TEST)/done ## Evaluate the version table on the released packages (12 GB, 25 minutes).
	$(TEST)/bin/python -m tests.tools.released tests/unit/released.json

requirements: ## Pin requirements anew, with hashes (needs uv).
	$(COMPILE) pyproject.toml -o requirements/server.txt
	$(COMPILE) --extra render pyproject.toml -o requirements/render.txt
	$(COMPILE) --extra test pyproject.toml -o requirements/test.txt

# The oldest LMCache that is supported, beside the current one.
$(CONFORMANCE)/lmcache-0.3.7: $(CONFORMANCE)/done
	@$(CONFORMANCE)/bin/python -m pip install -q --disable-pip-version-check --no-deps --require-hashes \
	  --target $@.part -r tests/conformance/requirements-0.3.7.txt && mv $@.part $@

# Of the engines only what reads arguments, files and environment: Python without the rest, from a wheel for any Python.
$(ENGINES:%=$(CONFORMANCE)/%): $(CONFORMANCE)/%: $(CONFORMANCE)/done
	@rm -rf $@.wheel $@.part
	@$(CONFORMANCE)/bin/python -m pip download -q --disable-pip-version-check --no-cache-dir --no-deps --require-hashes \
	  --only-binary=:all: --python-version=3.12 -d $@.wheel -r tests/conformance/requirements-$*.txt
	@$(CONFORMANCE)/bin/python -m tests.conformance.unpack $@.wheel $@.part && rm -r $@.wheel && mv $@.part $@

# --no-deps: each set is whole, and LMCache's own list would bring what only a GPU needs.
$(CACHE)/venv-%/done:
	@echo "setting up $(@D), once" >&2
	@rm -rf $(@D) && $(PYTHON) -m venv $(@D)
	@for file in $($(firstword $(subst -, ,$*))-set); do \
	  $(@D)/bin/python -m pip install -q --disable-pip-version-check --no-compile --no-deps --require-hashes -r $$file || exit 1; done
	@touch $@
