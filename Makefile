# New here? `make demo` shows the whole thing on one machine; `make test` passes the tests. Both set everything up.
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=
# Test processes at a time: one more than cores, since most of them wait for brokers and models to start, and at most
# four, since each may have a whole stack running (3 GB). TESTERS=0: all in one process, for a debugger.
TESTERS ?= $(shell cores=$$(getconf _NPROCESSORS_ONLN); [ $$cores -lt 4 ] && expr $$cores + 1 || echo 4)

##@ First steps

# A line "##@ NAME" begins a group, "target: … ## text" is a target in it; order and names are those of this file.
help: ## show this text
	@awk '/^##@ / { printf "%s%s\n", gap, substr($$0, 5); gap = "\n" } \
		/^[a-z0-9-]+:.*## / { text = $$0; sub(/^[^#]*## /, "", text); sub(/:.*/, ""); printf "  %-17s %s\n", $$0, text }' \
		$(MAKEFILE_LIST)

# torch goes first and alone: where a CPU build of this version is on offer pip takes it only when asked by exact
# version, and everything after it is then satisfied (the default Linux wheel pulls several GB of CUDA libraries).
.venv/installed: pyproject.toml deploy/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Freshet needs Python 3.11 or newer; set PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install -q --disable-pip-version-check -c deploy/constraints.txt -e '.[dev]'
	@touch $@

setup: .venv/installed ## install pinned dependencies into .venv

demo: setup ## run the main job on the embedded stack (ARGS='--help' teaches)
	$(BIN)/freshet demo $(ARGS)

##@ Tests and checks

test: setup ## all tests: unit, property, system, fault
	$(BIN)/python -m pytest -n $(TESTERS) --dist loadfile $(ARGS)

test-quick: setup ## the tests that need neither broker nor LLM, under 2 minutes
	$(BIN)/python -m pytest -n $(TESTERS) --dist loadfile -m 'not slow' $(ARGS)

faults: setup ## random faults on two instances of each role and Apache Kafka (ARGS='--sequences 30 --seed 1')
	$(BIN)/python -m tests.faults.run $(ARGS)

kill-loop: setup ## ten minutes of signals to all roles, in Faust's schedule (ARGS='--seconds 600')
	$(BIN)/python -m tests.faults.endurance kill-loop $(ARGS)

soak: setup ## 30 minutes at half the maximum rate with random kills: memory, lag, nothing lost (ARGS='--seconds 1800')
	$(BIN)/python -m tests.faults.endurance soak $(ARGS)

pressure: setup ## ten times the maximum rate for 5 minutes: memory bounded, nothing lost (ARGS='--seconds 300')
	$(BIN)/python -m tests.faults.endurance pressure $(ARGS)

fuzz: setup ## a million hostile inputs for every decoder of bytes from outside (ARGS='--inputs 1000000 --seed 1')
	$(BIN)/python -m tests.fuzz.run $(ARGS)

rehearse: setup ## docker-compose.yml without an engine: fit, up, events, doctor, down (as root; ARGS='--help')
	$(BIN)/python -m tests.containers.run $(ARGS)

lint: setup ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/mypy

audit: setup ## known vulnerabilities of the pinned dependencies (asks pypi.org)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c deploy/constraints.txt -e '.[audit]'
	$(BIN)/pip-audit --strict --no-deps --disable-pip -r deploy/constraints.txt

docs: setup ## the documentation site, build/site/index.html; a broken link is an error
	$(BIN)/python -m pip install -q --disable-pip-version-check -c deploy/constraints.txt -e '.[docs]'
	$(BIN)/python docs/site.py

##@ Benchmarks

bench-frontier: setup ## gain against LLM calls of every refresh policy (ARGS=--quick: a made-up world)
	$(BIN)/python -m benchmarks.frontier.run $(ARGS)

bench-ingest: setup ## events/s of the profile stage beside idiomatic Faust, Quix Streams and Bytewax
	$(BIN)/python -m benchmarks.ingest.run $(ARGS)

bench-experiment: setup ## error of an experiment's interval looked at after every user, and its width
	$(BIN)/python -m benchmarks.experiment.run $(ARGS)

bench-judge: setup ## the judge's false alarms and power, per user and pooled (ARGS=--quick: seconds)
	$(BIN)/python -m benchmarks.judge.run $(ARGS)

bench-sessions: setup ## texts of users at session starts: fresh, stale, guarded (ARGS='--data DIR'; --quick: seconds)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.sessions.run $(ARGS)

bench-drift: setup ## drift detection on planted changes, beside river's Page–Hinkley and ADWIN
	$(BIN)/python -m pip install -q --disable-pip-version-check -c deploy/constraints.txt -e '.[bench]'
	$(BIN)/python -m benchmarks.drift.run $(ARGS)

bench-price: setup ## the price of a refresh: storm, slow and dead GPU, budgets (ARGS=--quick: seconds)
	$(BIN)/python -m benchmarks.price.run $(ARGS)

bench-ctr: setup ## KAR's task: AUC and LogLoss of DIN and DCNv2 with and without written knowledge (ARGS=--quick: seconds)
	$(BIN)/python -m benchmarks.ctr.run $(ARGS)

bench-refresh: setup ## what a refresh costs in each system, of the versions in the registry (`freshet fit --system`)
	$(BIN)/python -m benchmarks.refresh.run $(ARGS)

bench-e2e: setup ## event to recommendation, drift to fresh knowledge: open loop (ARGS='--broker kafka'; --quick)
	$(BIN)/python -m benchmarks.e2e.run $(ARGS)

bench-catalogue: setup ## items that come after the fit: how soon they are in lists, how well ranked, at what cost (ARGS=--quick)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.catalogue.run $(ARGS)

bench-rank: setup ## ranking by the size of the catalogue: single requests and batches, beside torch and faiss (ARGS=--quick)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c deploy/constraints.txt -e '.[bench]'
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.rank.run $(ARGS)

bench-quality: setup ## all systems and controls, both protocols, three seeds (hours on a CPU; ARGS='--quick': seconds)
	$(BIN)/python -m benchmarks.quality.run $(ARGS)

bench-reference: setup ## is the reference tuned? its settings changed one at a time, by held-out events (ARGS=--quick)
	$(BIN)/python -m benchmarks.reference.run $(ARGS)

bench-bounds: setup ## how knowledge is kept from doing harm: bounds on every item, on the average, mixtures (ARGS=--quick)
	$(BIN)/python -m benchmarks.bounds.run $(ARGS)

bench-alignment: setup ## do contradictions teach the LLM? (ARGS='--data DIR', needs a model fitted on DIR)
	$(BIN)/python -m benchmarks.alignment.run $(ARGS)

bench-concepts: setup ## the pictures of docs/concepts.md (ARGS='--out DIR')
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.concepts.run $(ARGS)

bench-scale: setup ## what users need: instances, partitions, bytes (ARGS=--quick: nothing written)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.scale.run $(ARGS)

bench-api: setup ## time of the HTTP interface's answers at 200 requests a second (needs a fitted model; ARGS=--quick: 10 s)
	$(BIN)/python -m benchmarks.api.run $(ARGS)

bench-writing: setup ## speed and likelihood of texts the LLM writes, in 8 bits and in float32 (ARGS='--texts 256')
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.writing.run $(ARGS)

##@ Housekeeping

clean: ## remove the environment, caches and fitted models
	rm -rf .venv .freshet runs build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

.PHONY: help setup demo test test-quick faults fuzz kill-loop soak pressure rehearse lint audit docs bench-frontier bench-ingest \
	bench-experiment bench-judge bench-drift bench-price bench-ctr bench-refresh bench-quality bench-reference \
	bench-bounds bench-alignment bench-concepts bench-scale bench-writing bench-sessions bench-rank bench-e2e bench-api bench-catalogue clean
