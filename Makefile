# Everything that this project does has a target here; `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

CACHE := $(or $(TRITON_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/triton-on-kubernetes)
REQUIREMENTS := requirements.txt k8s-tests/requirements.txt
VENV_KEY := $(shell cat $(REQUIREMENTS) <(python3 -V) | sha256sum | cut -c1-12)
VENV := $(CACHE)/venv-$(VENV_KEY)
PY := .venv/bin/python
export PYTHONPATH := $(CURDIR):$(CURDIR)/image:$(CURDIR)/load_testing:$(CURDIR)/k8s-tests:$(CURDIR)/charts

.PHONY: help
help: ## List the targets
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

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

.PHONY: venv-vllm
venv-vllm: ## Install the Python environment of engine vllm for CPUs (cached, 6 GB)
	@python3 -m tools.vllm_environment

.PHONY: up
up: ## Cluster, images, model, helm install, then one question through the ingress
	@python3 -m tools.up

.PHONY: load
load: venv ## Load test in the cluster against the release of `make up`; its report ends up here [VALUES=FILE]
	@$(PY) -m tools.load_test $(if $(VALUES),--values $(VALUES))

.PHONY: fetch
fetch: venv ## Copy the newest report of a load test from its claim: NAMESPACE=... RELEASE=...
	@$(PY) -m tools.load_test fetch --namespace $(NAMESPACE) --release $(RELEASE)

.PHONY: capacity
capacity: venv ## The highest load that keeps the objectives: ARGS="--out DIR ... -- WORDS OF LOCUST"
	@$(PY) -m triton_load.capacity $(ARGS)

.PHONY: compare
compare: venv ## Compare two runs of the load test: BEFORE=DIR AFTER=DIR
	@$(PY) -m triton_load.compare $(BEFORE) $(AFTER)

.PHONY: cluster
cluster: ## The embedded cluster alone: DO=up|down|status|preflight|reset [WITH="monitoring keda"]
	@python3 -m cluster $(or $(DO),up) $(foreach each,$(WITH),--with=$(each))

.PHONY: down
down: ## Remove what `make up` made (caches stay; `make clean` removes them too)
	@python3 -m tools.down

.PHONY: clean
clean: ## Remove everything: cluster, images, caches, the Python environment
	@python3 -m tools.down --all
	@rm -rf .venv .pytest_cache .ruff_cache .mypy_cache

.PHONY: lint
lint: venv ## ruff, mypy, shellcheck
	@$(PY) -m tools.lint

.PHONY: generate
generate: venv ## Write what is generated: schemas, tables of values and parameters, dashboards
	@$(PY) -m tools.chart_generator charts/triton
	@$(PY) -m tools.chart_generator charts/locust
	@$(PY) -m tools.parameter_tables
	@$(PY) -m dashboards generate

.PHONY: verify
verify: venv ## Fail if something generated is out of date (`make generate` mends it)
	@$(PY) -m tools.chart_generator --check charts/triton
	@$(PY) -m tools.chart_generator --check charts/locust
	@$(PY) -m tools.parameter_tables --check
	@$(PY) -m dashboards verify

.PHONY: add-model
add-model: venv ## Write the two files of a model: NAME=... REPOSITORY=ORG/NAME [TASK=...] [REVISION=...] [SET="slots=8 ..."]
	@$(PY) -m triton_hf.models.repository add $(NAME) --repository $(REPOSITORY) \
	  $(if $(TASK),--task $(TASK)) $(if $(REVISION),--revision $(REVISION)) $(foreach each,$(SET),--set $(each))

.PHONY: unit
unit: venv ## Tests that need no server and no cluster
	@$(PY) -m tools.test unit load

.PHONY: serving
serving: venv ## Tests against a real tritonserver on this machine
	@$(PY) -m tools.test vllm serving

.PHONY: docker
docker: venv ## The Docker way on a real engine, SmolLM2 included (about 10 min)
	@$(PY) -m pytest -q -m docker image/tests/docker

.PHONY: architectures
architectures: venv ## Every architecture against transformers: the same answers, or refused by name
	@$(PY) -m pytest -q -n 2 image/tests/unit/test_architectures.py

.PHONY: chart
chart: venv ## helm lint, and tests of the rendered charts
	@$(PY) -m tools.test chart

.PHONY: e2e
e2e: venv ## Tests on the cluster of `make up`
	@$(PY) -m tools.test cluster

.PHONY: faults
faults: venv ## Every fault on the cluster of `make up` (about 100 min), and a table of the results
	@$(PY) -m tools.run_faults

.PHONY: scale
scale: venv ## The signal against the truth, then 20 load steps each for HPA and KEDA on the cluster of `make up` (about 3 h)
	@$(PY) -m benchmarks.scaling.signal_accuracy --out results/scale/signal.json
	@$(PY) -m cluster up --with=monitoring --with=keda
	@$(PY) -m pytest -q -m "slow and cluster" k8s-tests/autoscaling
	@$(PY) -m benchmarks.scaling.fleet --scaler hpa --out results/scale/hpa
	@$(PY) -m benchmarks.scaling.fleet --scaler keda --out results/scale/keda
	@$(PY) -m benchmarks.scaling.fleet --scaler hpa --sync 5 --out results/scale/hpa-sync-5
	@$(PY) -m benchmarks.scaling.fleet --scaler keda --sync 5 --out results/scale/keda-sync-5
	@$(PY) -m benchmarks.scaling.fleet --scaler hpa --model smollm2-135m --releases 1 --rounds 20 --out results/scale/smollm2-hpa
	@$(PY) -m benchmarks.scaling.fleet --scaler keda --model smollm2-135m --releases 1 --rounds 20 --out results/scale/smollm2-keda
	@$(PY) -m benchmarks.scaling.results_page $(addprefix results/scale/,signal.json hpa keda hpa-sync-5 keda-sync-5 smollm2-hpa smollm2-keda)

.PHONY: dashboards
dashboards: venv ## Write and check the Grafana dashboards, then draw them from a release under load (about 10 min)
	@$(PY) -m dashboards generate
	@$(PY) -m dashboards verify
	@$(PY) -m cluster up --with=monitoring
	@$(PY) -m dashboards.show --out charts/dashboards

.PHONY: simulation
simulation: venv ## The chart with 200 GPU nodes and 400 servers, simulated (about 25 min), and a page
	@$(PY) -m benchmarks.scaling.simulation --out results/simulation
	@$(PY) -m benchmarks.scaling.simulation_report results/simulation/simulation.json

.PHONY: bench
bench: venv ## The engine behind Triton beside its peers, and how exact its answers are (about an hour)
	@$(PY) -m benchmarks.engine.peers --install --out results/peers.json
	@$(PY) -m benchmarks.engine.overhead --out results/overhead.json
	@$(PY) -m benchmarks.engine.accuracy --out results/accuracy.json

.PHONY: bench-load
bench-load: venv ## Measure the load test itself: its error, its agreement with other clients, its limit
	@$(PY) -m pytest -s -q -m "slow and not cluster and not faults" load_testing/tests
	@$(PY) -m pytest -q -m "slow and cluster" k8s-tests/load
	@$(PY) -m benchmarks.load_generator.exactness --out results/exactness.json || test $$? = 3
	@$(PY) -m benchmarks.load_generator.agreement --install --out results/agreement.json || test $$? = 4
	@$(PY) -m benchmarks.load_generator.generator --workers 1 2 4 8 --out results/generator.json

.PHONY: soak
soak: venv ## Half an hour at 80 % load on this machine: does latency, memory or /dev/shm drift?
	@$(PY) -m benchmarks.soak --minutes 30

.PHONY: hostile
hostile: venv ## 100,000 hostile requests against a server on this machine
	@$(PY) -m benchmarks.hostile --out results/hostile/hostile.json

.PHONY: cases
cases: venv ## Every field case with the tests that show it, and docs/field-cases.md [ARGS="--only BH-01"]
	@$(PY) -m tools.field_cases $(ARGS)

.PHONY: audit
audit: venv ## Bills of materials, known vulnerabilities, Checkov on all charts
	@$(PY) -m tools.audit --install

.PHONY: test
test: venv ## Everything; skips what this machine cannot do, with the reason
	@$(PY) -m tools.test
