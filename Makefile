# `make help` lists the targets. Everything they need is installed by scripts/setup.sh; a Rust toolchain is all you bring.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup setup-tests build run test check unit soak bench fmt

help: ## List the targets.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

setup: ## Install PostgreSQL and nats-server if they are missing.
	@scripts/setup.sh

setup-tests:
	@scripts/setup.sh --tests

build: setup ## Build the `tenure` binary.
	@cargo build --quiet --workspace

run: build ## Start everything; the data stays in .tenure (DATA_DIR=… for another place, HTTP=… for another address).
	@exec target/debug/tenure up $(if $(DATA_DIR),--data-dir $(DATA_DIR)) $(if $(HTTP),--http $(HTTP))

test: setup-tests check unit ## Run everything that CI runs: format, lints, documentation, all tests.

check: ## Format, lints, documentation.
	cargo fmt --all --check
	cargo clippy --quiet --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --quiet --workspace --no-deps --document-private-items

unit: ## All tests, against real servers that are started once.
	cargo build --quiet --workspace --all-targets
	target/debug/testing cargo test --quiet --workspace

soak: setup-tests ## Random faults under load for so many SECONDS (600); prints counts.
	cargo build --quiet --workspace --all-targets
	TENURE_SOAK=$(or $(SECONDS),600) target/debug/testing cargo test --quiet -p cli --test it -- --exact --nocapture faults::random_faults_for_as_long_as_asked_lose_and_double_nothing

bench: setup ## Measure, on private servers: ratios within one run. ARGS=append|http|bulk measures one part.
	@cargo build --quiet --release -p bench -p cli
	@target/release/bench $(ARGS)

fmt: ## Format the code.
	cargo fmt --all
