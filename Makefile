# One command sets up, one checks, one tests; CI runs the same ones.
UV := $(shell uv --version >/dev/null 2>&1 && command -v uv || echo .uv/bin/uv)
RUN := $(UV) run --frozen --no-sync
PROCESSES ?= 2
SECONDS ?= 600
N ?= 10000
TIMES ?= 10
RIGS ?= postgres-pair broker-nodes clocks

.PHONY: help up down logs stop-worker start-worker doctor dev seed test smoke fuzz generate faults mutations failover outages versions servers bench bench-quick bench-scale numbers check docs format
.DEFAULT_GOAL := help

help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

up: .venv/made ## start everything and wait until it is healthy; in containers, or without Docker
	@$(RUN) python -m dev up

down: .venv/made ## stop everything; the data stays
	@$(RUN) python -m dev down

logs: .venv/made ## follow the logs
	@$(RUN) python -m dev logs

stop-worker: .venv/made ## stop the worker, to see what the gateway does without one
	@$(RUN) python -m dev stop-worker

start-worker: .venv/made ## start it again
	@$(RUN) python -m dev start-worker

doctor: .venv/made ## have what `make up` has started examine itself, and say what to do
	@$(RUN) python -m dev doctor

dev: .venv/made ## run from the source, reloading on change
	@$(RUN) python -m dev dev

seed: .venv/made ## fill what `make up` has started with notes: N=10000
	@$(RUN) python -m dev.seed $(N)

test: .venv/made ## run the tests on a real Postgres and a real RabbitMQ
	$(RUN) pytest --numprocesses=$(PROCESSES) --dist=loadfile --no-loadscope-reorder --cov --cov-report=term-missing:skip-covered

smoke: .venv/made ## the commands of the README and the tutorial, and a few tests, without Docker
	@$(RUN) python -m dev.smoke
	BACKEND=local $(RUN) pytest tests/gateway/test_notes.py tests/worker/test_consumer.py tests/system/test_killed.py

fuzz: .venv/made ## try 10,000 requests drawn from the OpenAPI document, good and bad ones; takes some minutes
	FUZZ_EXAMPLES=500 FUZZ_CASES=10000 $(RUN) pytest -s tests/fuzz

generate: .venv/made ## write the generated files: OpenAPI document, settings tables, alerts of Kubernetes
	@$(RUN) python -m dev.openapi
	@$(RUN) python -m dev.settings_table
	@$(RUN) python -m dev.alerts

faults: .venv/made ## break a cluster from a seed and judge every promise; SECONDS, SEED="1 2", WRITE=1
	@$(RUN) python -m tests.faults --seconds $(SECONDS) $(if $(SEED),--seed $(SEED)) $(if $(WRITE),--write)

mutations: .venv/made ## break the product in thirteen ways: the faults must show each; takes ten minutes
	@$(RUN) python -m tests.faults --mutations --seed 1 $(if $(WRITE),--write)

failover: .venv/made ## let servers fail over under load and judge every promise; RIGS, TIMES, WRITE=1
	@status=0; for rig in $(RIGS); do \
		$(RUN) python -m tests.faults --rig $$rig --times $(TIMES) $(if $(WRITE),--write) || status=1; \
	done; exit $$status

outages: .venv/made ## break and kill everything: all of it, with long pauses
	PAUSE_SECONDS=60 KILLS=20 $(RUN) pytest -m "" tests/system tests/k8s/test_rolling_update.py tests/faults/test_faults.py

versions: .venv/made ## the system tests with a gateway, then a worker, of the version before
	$(RUN) python -m tests.system.versions

servers: .venv/made ## the tests that use servers, on those of before: Postgres 17 and RabbitMQ 4.0
	POSTGRES_IMAGE=postgres:17 RABBITMQ_IMAGE=rabbitmq:4.0-management BACKEND=docker $(RUN) pytest \
		--numprocesses=$(PROCESSES) --dist=loadfile --no-loadscope-reorder tests/gateway tests/shared tests/system tests/worker

bench: .venv/made ## compare with the same API without a queue; writes docs/performance.md, takes forty minutes
	$(RUN) python -m bench --write

bench-quick: .venv/made ## the same in three minutes, and only prints
	$(RUN) python -m bench --connections 64 --owners 1 --rounds 2 --seconds 2 --trouble --scale 0

bench-scale: .venv/made ## reads of an owner with a million notes against those of one with a thousand; takes ten minutes
	$(RUN) python -m bench --scenario --trouble

numbers: .venv/made ## what an operator plans with: bytes, sessions, pruning; needs Docker and 10 GB of disk, takes ten minutes
	@$(RUN) python -m bench.numbers

check: .venv/made ## format, lint, types, import rules
	$(RUN) ruff format --check .
	$(RUN) ruff check .
	$(RUN) mypy
	$(RUN) lint-imports --no-cache
	$(UV) lock --check

docs: .venv/made ## build the documentation's site into the folder site; warnings are errors
	@$(RUN) python -m dev.documentation

format: .venv/made ## write the code in the project's format
	$(RUN) ruff format .
	$(RUN) ruff check --fix .

.uv/bin/uv:
	@echo "uv is missing; installing it into .uv"
	@python3 -m venv .uv || { echo "python3 cannot make a virtual environment; on Debian: apt-get install python3-venv" >&2; exit 1; }
	@.uv/bin/pip install --quiet uv==0.13.9

.venv/made: pyproject.toml uv.lock | $(UV)
	@$(UV) sync --frozen --quiet --compile-bytecode
	@touch $@
