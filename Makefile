# Every target works on a fresh machine: the virtual environment is made first, and again when pyproject.toml changes.

PYTHON ?= $(shell scripts/find-python)
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SOURCES := fastclaw bench tests scripts

WORKERS ?= 0
ROUNDS ?= 20
SECONDS ?= 600
BENCH := $(BIN)/python -m pytest bench -p no:cacheprovider --timeout=600 \
	--benchmark-columns=min,median,max,rounds --benchmark-sort=name

# In somebody else's tree root leaves no caches: the owner could neither write nor remove them.
ifneq ($(shell id -u),$(shell stat -c %u .))
CACHES := $(HOME)/.cache/fastclaw
export PYTHONPYCACHEPREFIX := $(CACHES)/python
export MYPY_CACHE_DIR := $(CACHES)/mypy
export RUFF_CACHE_DIR := $(CACHES)/ruff
export HYPOTHESIS_STORAGE_DIRECTORY := $(CACHES)/hypothesis
export PYTEST_ADDOPTS := -o cache_dir=$(CACHES)/pytest --benchmark-storage=file://$(CACHES)/benchmarks
endif

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help install engine-packages test test-adapters test-hosts test-pythons test-gvisor gvisor-table check fmt demo bench bench-check bench-compare bench-short soak fuzz wheels clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Where Python is told to write no bytecode (PYTHONDONTWRITEBYTECODE, in many containers), each start would compile all of
# it again: that took a third of the tests' time.
install: $(STAMP) ## make the virtual environment (VENV=.venv, PYTHON=python3)
	@$(BIN)/python -m compileall -q -j 0 fastclaw

$(STAMP): pyproject.toml $(wildcard fastclaw/spawner/c/*) scripts/build_spawner.py scripts/fastclaw
	@scripts/make-venv "$(PYTHON)" "$(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@
	@[ "$$(id -u)" -ne 0 ] || chown -hR "$$(stat -c %u:%g .)" $(VENV) # root installs for who has the tree

engine-packages: ## install the engine's packages (root on Debian or Ubuntu; elsewhere say which command does)
	@scripts/engine-packages "$(PYTHON)"

test: engine-packages install ## run all tests (WORKERS=2: two at a time; OPTIONS=--durations=50, or any other of pytest's)
	$(BIN)/python -m pytest -n $(WORKERS) $(OPTIONS)

test-adapters: engine-packages install ## run each adapter against its tool, in an environment of its own (TOOLS="inspect harbor")
	$(BIN)/python scripts/test_adapters.py $(TOOLS)

test-hosts: install ## run it all as other users and on other systems (HOSTS="debian13 this-user", OPTIONS=--short)
	$(BIN)/python -m tests.hosts $(OPTIONS) $(HOSTS)

test-pythons: engine-packages install ## run the tests under each Python from 3.11 on (VERSIONS="3.13 3.14", TESTS="tests/server tests/client")
	$(BIN)/python scripts/test_pythons.py $(TESTS)

test-gvisor: engine-packages install ## run commands in gVisor, which is got from Debian 13 where it is not here
	runsc="$$(command -v runsc || scripts/get-runsc .gvisor)" && \
		FASTCLAW_RUNSC="$$runsc" $(BIN)/python -m pytest -m gvisor tests/engine/test_gvisor.py $(OPTIONS)

gvisor-table: engine-packages install ## print which promises hold in gVisor, as docs/gvisor.md has it
	@runsc="$$(command -v runsc || scripts/get-runsc .gvisor)" && FASTCLAW_RUNSC="$$runsc" $(BIN)/python -m tests.engine.gvisor_table

check: install ## lint, formatting, types, and which way imports go
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

fmt: install ## format and fix what ruff can fix
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

demo: install ## start 100 workers, stream through them, show what it took (no sudo)
	@$(BIN)/fastclaw demo

bench: install ## measure everything, write .bench/DATE-COMMIT.jsonl (or RESULTS=FILE) and docs/benchmarks.md
	@scripts/get-rivals "$(BIN)/python" .rivals
	$(BENCH) --ratios-write $(if $(RESULTS),--results='$(RESULTS)')

bench-check: install ## measure and fail below the goals in bench/budgets.toml
	$(BENCH) --ratios-check $(if $(RESULTS),--results='$(RESULTS)')

bench-compare: install ## what two files of results say of each other, and what noise explains (A=FILE B=FILE)
	@$(BIN)/python -m bench.compare $(if $(A),'$(A)') $(if $(B),'$(B)')

bench-short: install ## measure for a minute and fail where a budget is missed by more than noise explains; CI runs it
	@$(BIN)/python -m bench.short $(if $(RESULTS),'$(RESULTS)')

soak: install ## the demo again and again (ROUNDS=20), then 100 000 starts and 1 000 environments; stops at the first leftover or wrong byte
	@$(BIN)/fastclaw demo --rounds $(ROUNDS)
	$(BIN)/python -m pytest -m soak

fuzz: install ## the property tests with 100 times as many examples; the spawner under sanitizers (SECONDS=600)
	$(BIN)/python -m tests.spawner.fuzz --seconds $(SECONDS)
	$(BIN)/python -m pytest -p tests.fuzz --hypothesis-profile=fuzz -m hypothesis --timeout=0

wheels: install ## build what is published: a wheel for each machine, and the sources (dist/)
	@for machine in x86_64 aarch64; do FASTCLAW_MACHINE=$$machine $(BIN)/python -m hatchling build -t wheel || exit; done
	@$(BIN)/python -m hatchling build -t sdist

clean: ## remove the virtual environment and everything generated
	rm -rf $(VENV) .adapters .rivals .pythons .gvisor .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks build dist fastclaw/spawner/bin
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
