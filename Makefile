PYTHON ?= python3
MODEL ?= preact_resnet164
DEVICE ?= auto
ROUNDS ?= 10
WORKERS ?= 2

BIN := .venv/bin
INSTALLED := .venv/.installed
ASAN := build/asan

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all asan bench lint format wheel clean

help: ## what can be made, and the variables
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "Variables, as in: make demo EPOCHS=1 ROUNDS=1"
	@echo "  PYTHON=$(PYTHON)  the Python (3.11 or newer) that makes .venv"
	@echo "  MODEL=$(MODEL)  DEVICE=$(DEVICE)  of demo"
	@echo "  EPOCHS=$(EPOCHS)  of demo's training (empty: what the train command chooses)"
	@echo "  ROUNDS=$(ROUNDS)  of demo's timing"
	@echo "  WORKERS=$(WORKERS)  processes that run tests"

setup: $(INSTALLED) ## make .venv with the package (editable) and all that demo and tests need
	@$(BIN)/python setup.py -q build_ext --inplace

$(INSTALLED): pyproject.toml setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "fused-preact needs Python 3.11 or newer and '$(PYTHON)' is not one: name one with make $(MAKECMDGOALS) PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt setuptools ninja pybind11
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[train,triton,dev]'
# Not an extra: without --no-deps pytorchcv brings torchvision, which its models do not import.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps pytorchcv requests || \
		echo "pytorchcv could not be installed: its networks are not tested (tests/convert/test_zoo.py)" >&2
	@touch $@

demo: setup ## train MODEL on handwritten digits, then time it against eager PyTorch
	$(BIN)/fused-preact train --model $(MODEL) --data digits --device $(DEVICE) $(if $(EPOCHS),--epochs $(EPOCHS))
	$(BIN)/fused-preact bench --model $(MODEL) --batch-size 64 --device $(DEVICE) --against eager --rounds $(ROUNDS) \
		--json runs/demo-$(MODEL).json --plot runs/demo-$(MODEL).png

test: setup ## the tests, without the slow ones
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow"

test-all: setup ## all tests
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

asan: setup ## the kernel tests of the cpu backend under AddressSanitizer and UBSan, in a copy of the package
	@mkdir -p $(ASAN)
	@cd $(ASAN) && rm -rf csrc fused_preact tests
	@cp -a setup.py pyproject.toml README.md LICENSE csrc fused_preact tests $(ASAN)
	cd $(ASAN) && CXX='$(CXX)' CXXFLAGS='-fsanitize=address,undefined -fno-sanitize-recover=undefined -g -O2' FUSED_PREACT_REQUIRE_NATIVE=1 FUSED_PREACT_CUDA_ARCHS=none \
		$(CURDIR)/$(BIN)/python setup.py -q build_ext --inplace
	cd $(ASAN) && LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so.6)" \
		ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
		$(CURDIR)/$(BIN)/python -m pytest -s -n $(WORKERS) -m "not slow" -k cpu tests/ops tests/cpu/test_paths.py

bench: setup ## time every layer shape, against the FMA peak too, and the host time of a unit
	$(BIN)/python -m pytest benchmarks --benchmark-only
	$(BIN)/python -m benchmarks.layers
	$(BIN)/python -m benchmarks.host_time

lint: setup ## ruff's rules and format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: setup ## let ruff format and fix
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

wheel: setup ## dist/: the sdist, and a wheel built from it
	rm -rf dist
	$(BIN)/python -m build --no-isolation

clean: ## remove what was built, but not .venv and runs/
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .benchmarks
	rm -f fused_preact/_cpu* fused_preact/_cuda*
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +
