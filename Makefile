# All commands of a developer. Each target does its own set-up once. `make test`, `make demo` and
# `make run` need Python 3.11+ and make; they install RabbitMQ and PostgreSQL if possible.

PYTHON ?= python3
FUZZ_SECONDS ?= 300
# Tests mostly wait, for servers and for faults to pass.
TEST_PROCESSES ?= 6
# Where the project is published; a clone does not know it.
PROJECT_URL ?= https://example.org/flow-run-worker
VENV := .venv
BIN := $(VENV)/bin

# By uv, in a tenth of pip's time; by pip if uv fails, such as with an index that only pip knows.
# The second argument is an environment's bin; $(BIN) by default.
PIP = $(or $(1),$(BIN))/pip install --quiet --disable-pip-version-check
install = $(BIN)/uv pip install --quiet --python $(or $(2),$(BIN))/python $(1) || $(call PIP,$(2)) $(1)

PYTEST = $(BIN)/python -m pytest --numprocesses=$(TEST_PROCESSES) --dist=loadfile --no-loadscope-reorder

# Otherwise each of the many processes would compile all modules again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help check test test-long test-engine test-rabbitmq4 image fuzz soak among-good lint dist demo demo-prefect run bench stages reference servers clean

help:                 ## Show this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 18

$(VENV)/installed: deploy/requirements/uv.txt deploy/requirements/worker.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: set PYTHON=…")'
	$(PYTHON) -m venv $(VENV)
	$(call PIP) --require-hashes -r deploy/requirements/uv.txt
	$(call install,--require-hashes -r deploy/requirements/worker.txt)
	$(call install,--no-deps --editable .)
	@touch $@

$(VENV)/installed-test: $(VENV)/installed deploy/requirements/test.txt
	$(call install,--require-hashes -r deploy/requirements/test.txt)
	@touch $@

servers:              ## Install the servers that the tests start for themselves (Debian, as root), or say what to do
	@tests/support/servers.sh rabbitmq postgresql pgbouncer

check: $(VENV)/installed-test lint dist   ## Check style and types, and run the quick tests, which need no servers (below two minutes)
	$(BIN)/python -m pytest --quiet tests/unit

test: $(VENV)/installed-test servers lint   ## Run the tests against a real RabbitMQ, PostgreSQL and SQLite (some 17 minutes on two cores)
	$(PYTEST) -m "not long" --ignore=tests/deploy/engine

test-long: $(VENV)/installed-test servers   ## Run the tests that `make test` leaves out: longer ones, and more combinations
	$(PYTEST) -m long --ignore=tests/deploy/engine

test-engine: $(VENV)/installed-test   ## Run the image and docker-compose.yml by a Docker engine of its own (Debian, as root)
	$(BIN)/python -m pytest --verbose tests/deploy/engine

test-rabbitmq4: $(VENV)/installed-test servers   ## Run the tests of the worker and its users against RabbitMQ 4 (Debian, as root, with mmdebstrap)
	server=$$(tests/support/rabbitmq4.sh .cache/rabbitmq-4) && RABBITMQ_SERVER=$$server $(PYTEST) tests/integration tests/deploy/test_compose.py

image: $(VENV)/installed-test   ## Build deploy/Dockerfile by a Docker engine of its own, and run the image (Debian, as root)
	$(BIN)/python -m pytest --verbose tests/deploy/engine/test_image.py

$(VENV)/installed-fuzz: $(VENV)/installed-test
	$(call install,atheris==3.0.0)
	@touch $@

fuzz: $(VENV)/installed-fuzz   ## Fuzz the line, and then checks, in process, guided by coverage, each for FUZZ_SECONDS (300); what is found is kept in .cache/fuzz
	@$(BIN)/python -m tests.fuzz.seeds .cache/fuzz/corpus
	$(BIN)/python -m tests.fuzz.fuzz_line -max_total_time=$(FUZZ_SECONDS) -max_len=8192 -timeout=20 -rss_limit_mb=2048 \
		-dict=tests/fuzz/line.dict -artifact_prefix=.cache/fuzz/ -print_final_stats=1 .cache/fuzz/corpus
	@mkdir -p .cache/fuzz/checks
	$(BIN)/python -m tests.fuzz.fuzz_checks -max_total_time=$(FUZZ_SECONDS) -timeout=20 -rss_limit_mb=2048 \
		-artifact_prefix=.cache/fuzz/ -print_final_stats=1 .cache/fuzz/checks

lint: $(VENV)/installed-test   ## Check style, types, and who imports whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

.cache/release/installed: deploy/requirements/release.txt $(VENV)/installed
	$(PYTHON) -m venv .cache/release
	$(call install,--require-hashes -r $<,.cache/release/bin)
	@touch $@

dist: .cache/release/installed   ## Build both distributions into .cache/dist, with the links of PROJECT_URL, and check them
	@rm -rf .cache/dist
	.cache/release/bin/python deploy/release/build.py $(PROJECT_URL) .cache/dist
	.cache/release/bin/twine check --strict .cache/dist/*
	@# W004: the files of migrations begin with numbers.
	.cache/release/bin/check-wheel-contents --ignore=W004 .cache/dist
	@# It misses an address of mail, which the project does not have.
	for file in .cache/dist/*.gz; do .cache/release/bin/pyroma --min=8 $$file || exit; done

demo: $(VENV)/installed   ## Show the main job on a broker, a worker and SQLite; leaves nothing running
	@$(BIN)/python -m tests.support.demo

demo-prefect: $(VENV)/installed-test   ## Show a deployment that messages start, on a Prefect server and its process worker; leaves nothing running
	@$(BIN)/python -m tests.support.demo_prefect

run: $(VENV)/installed   ## Run a worker in the foreground, with a broker of its own if none answers
	@$(BIN)/python -m tests.support.run

bench: $(VENV)/installed-test servers   ## Compare with Prefect's API and others, in one run on this machine (about ten minutes)
	@$(BIN)/python -m tests.benchmarks.compare

stages: $(VENV)/installed-test servers   ## Show where a worker's microseconds go, by stages of a request
	@$(BIN)/py-spy --version >/dev/null 2>&1 || $(call install,py-spy==0.4.3)
	@$(BIN)/python -m tests.benchmarks.stages

reference: $(VENV)/installed-test   ## Pin the Prefect that VERSION in tests/conformance/prefect_server.py names, to be compared with from then on
	@$(BIN)/python -m tests.conformance.pin

soak: $(VENV)/installed-test servers   ## All faults mixed for MINUTES (20), in an order that SEED (1) decides; DATABASE postgresql or sqlite
	@$(BIN)/python -m tests.faults.soak --minutes $(or $(MINUTES),20) --seed $(or $(SEED),1) --database $(or $(DATABASE),postgresql)

among-good: $(VENV)/installed-test servers   ## Each bad kind among 2,000 good requests, on each database, by one worker and by three
	@$(BIN)/python -m tests.faults.among_good

clean:                ## Remove what the targets made
	rm -rf $(VENV) .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis
