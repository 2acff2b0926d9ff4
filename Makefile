# One command sets up, one checks, one tests; CI runs the same ones.
UV := $(shell uv --version >/dev/null 2>&1 && command -v uv || echo .uv/bin/uv)
RUN := $(UV) run --frozen --no-sync
PROCESSES ?= 3
GROUP ?= test
SECONDS ?= 600
N ?= 10000
TIMES ?= 10
MINUTES ?= 30
SBOM ?= sbom.cdx.json
PLATFORMS ?= linux/amd64,linux/arm64
REGISTRY ?= $(error name the registry: make image REGISTRY=registry.example.com)
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
RIG ?= single
RIGS ?= postgres-pair broker-nodes clocks

.PHONY: help up down logs stop-worker start-worker doctor seed dev format generate check test retest smoke docs faults mutations failover outages versions servers fuzz proof bench bench-quick bench-scale numbers million image sbom
.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^##@/ { print substr($$0, 5) ":" } /^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' \
		$(MAKEFILE_LIST)

##@ Run

up: .venv/run ## start everything and wait until it is healthy, in containers or without Docker
	@$(RUN) python -m dev up

down: .venv/run ## stop everything; the data stays
	@$(RUN) python -m dev down

logs: .venv/run ## follow the logs
	@$(RUN) python -m dev logs

stop-worker: .venv/run ## stop the worker, to see what the gateway does without it
	@$(RUN) python -m dev stop-worker

start-worker: .venv/run ## start it again
	@$(RUN) python -m dev start-worker

doctor: .venv/run ## let what `make up` has started check itself, and suggest remedies
	@$(RUN) python -m dev doctor

seed: .venv/run ## fill what `make up` has started with notes: N=10000
	@$(RUN) python -m dev.seed $(N)

##@ Develop

dev: .venv/run ## run from the source, reloading on change
	@$(RUN) python -m dev dev

format: .venv/made ## write the code in the project's format
	$(RUN) ruff format .
	$(RUN) ruff check --fix .

generate: .venv/$(GROUP) ## write the generated files: OpenAPI and AsyncAPI documents, tables of settings, metrics and error paths, alerts of Kubernetes
	@$(RUN) python -m dev.openapi
	@$(RUN) python -m dev.asyncapi
	@$(RUN) python -m dev.settings_table
	@$(RUN) python -m dev.metrics_table
	@$(RUN) python -m dev.error_paths
	@$(RUN) python -m dev.alerts

check: .venv/made ## format, lint, types, import rules
	$(RUN) ruff format --check .
	$(RUN) ruff check .
	$(RUN) mypy
	PYTHONPATH=client $(RUN) lint-imports --no-cache
	$(UV) lock --check

test: .venv/$(GROUP) ## run the tests on a real Postgres and a real RabbitMQ
	$(RUN) pytest --numprocesses=$(PROCESSES) --dist=loadfile --no-loadscope-reorder --cov --cov-report=term-missing:skip-covered

retest: .venv/$(GROUP) ## run those that failed again, one after the other: on a busy machine a test may starve
	$(RUN) pytest --last-failed --last-failed-no-failures=none

smoke: .venv/$(GROUP) ## the commands of the README and the tutorial, and a few tests, without Docker
	@$(RUN) python -m dev.smoke
	BACKEND=local $(RUN) pytest tests/gateway/test_notes.py tests/system/test_killed.py

docs: .venv/docs ## build the documentation's site into the folder site; warnings are errors
	@$(RUN) python -m dev.documentation

##@ Break it

faults: .venv/$(GROUP) $(if $(WRITE),.venv/bench) ## inject faults into a cluster and check every promise: RIG, SECONDS, SEED="1 2", WRITE=1
	@$(RUN) python -m tests.faults --rig $(RIG) --seconds $(SECONDS) $(if $(SEED),--seed $(SEED)) \
		$(if $(CLIENTS),--clients $(CLIENTS)) $(if $(WITHOUT),--without $(WITHOUT)) \
		$(if $(WRITE),--write) $(if $(REPORT),--report) $(if $(CURRENT),--current)

mutations: .venv/$(GROUP) ## break the product on purpose, in each way that `make faults` must find; about an hour
	@$(RUN) python -m tests.faults --mutations --seed 1 $(if $(WRITE),--write)

failover: .venv/$(GROUP) ## let servers fail over under load and check every promise: RIGS, TIMES, WRITE=1
	@status=0; for rig in $(RIGS); do \
		$(RUN) python -m tests.faults --rig $$rig --times $(TIMES) $(if $(WRITE),--write) || status=1; \
	done; exit $$status

outages: .venv/$(GROUP) ## the longest outages: kill, pause and starve the services and both servers
	PAUSE_SECONDS=60 SHORT_SECONDS=10 FULL_SECONDS=10 KILLS=20 HELD_SECONDS=60 REPARTITION_NUMBERS="4 3 8 1" $(RUN) pytest -m "" tests/worker/test_locked_owners.py tests/system tests/k8s/test_rolling_update.py tests/faults/test_faults.py

versions: .venv/$(GROUP) ## the system tests with a gateway, then a worker, of the previous version
	$(RUN) python -m tests.system.versions

servers: .venv/$(GROUP) ## the tests that use servers, on Postgres 17 and RabbitMQ 4.0
	POSTGRES_IMAGE=postgres:17 RABBITMQ_IMAGE=rabbitmq:4.0-management BACKEND=docker $(RUN) pytest \
		--numprocesses=$(PROCESSES) --dist=loadfile --no-loadscope-reorder tests/gateway tests/shared tests/system tests/worker

fuzz: .venv/$(GROUP) ## send 10,000 requests drawn from the OpenAPI document, and try every property often; some minutes
	FUZZ_EXAMPLES=500 FUZZ_CASES=10000 PROPERTY_EXAMPLES=1000 $(RUN) pytest -s tests/fuzz \
		tests/worker/test_batching.py tests/worker/test_interleaving.py tests/gateway/test_changes_converge.py

proof: .venv/$(GROUP) .venv/bench ## 10,000 requests beside a model, a million inputs for the decoders, a soak: MINUTES, SEED, WRITE=1
	MODEL_STEPS=10000 PROOF_SEED=$(SEED) $(RUN) pytest tests/model
	DECODER_INPUTS=1000000 PROOF_SEED=$(SEED) $(RUN) pytest tests/fuzz/test_decoders.py tests/fuzz/test_applying.py
	@$(RUN) python -m tests.faults.soak --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(if $(WRITE),--write)

##@ Measure

bench: .venv/bench ## compare with the same API without a queue, forty minutes; writes docs/performance.md
	$(RUN) python -m bench --write

bench-quick: .venv/bench ## the same in three minutes, and only prints
	$(RUN) python -m bench --connections 64 --owners 1 --rounds 2 --seconds 2 --trouble --scale 0

bench-scale: .venv/bench ## reads of an owner with a million notes against one with a thousand; ten minutes
	$(RUN) python -m bench --scenario --trouble

numbers: .venv/bench ## what an operator plans with: bytes, sessions, pruning; ten minutes, 10 GB of disk, Docker
	@$(RUN) python -m bench.numbers

million: .venv/$(GROUP) .venv/bench ## export and import a million notes, each interrupted three times; half an hour, Docker
	NOTES=1000000 RESULTS=docs/performance/million.json $(RUN) pytest -s tests/system/test_million.py
	@$(RUN) python -m bench.memory docs/performance/million.json

##@ Release

image: ## build the image for PLATFORMS, by default amd64 and arm64, and push it: REGISTRY=registry.example.com
	docker buildx build --platform $(PLATFORMS) --push --tag $(REGISTRY)/inkwell:$(VERSION) \
		--build-arg VERSION=$(VERSION) --build-arg REVISION=$$(git rev-parse HEAD) .

sbom: .venv/made ## list what the image installs, with versions and hashes, as CycloneDX: SBOM=sbom.cdx.json
	@$(UV) export --quiet --frozen --no-default-groups --extra traces --format cyclonedx1.5 --preview-features sbom-export \
		--output-file $(SBOM) >/dev/null

.uv/bin/uv:
	@echo "uv is missing; installing it into .uv"
	@python3 -m venv .uv || { echo "python3 cannot make a virtual environment; on Debian: apt-get install python3-venv" >&2; exit 1; }
	@.uv/bin/pip install --quiet uv==0.13.9

.venv/made: pyproject.toml uv.lock | $(UV)
	@$(UV) sync --frozen --quiet --compile-bytecode
	@touch $@

# A dependency group, beside those that are installed already.
.venv/%: pyproject.toml uv.lock | $(UV)
	@$(UV) sync --frozen --quiet --compile-bytecode --inexact --no-default-groups --group $*
	@touch $@
