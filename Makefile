# Each target first makes .venv, with the versions of constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO := results/demo
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo quick test slow coverage witness check wheel bench gpu clean help

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(STAMP) ## run the main job on the embedded default and write a report
	$(BIN)/dpobench run --variants dpo,ipo,cdpo --beta-grid --preset small --out $(DEMO) $(ARGS)

test: $(STAMP) ## run the test suite
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

# Order of rooms, files on disk, laws and values of all losses, the main statistics, the training loop, the win-rate.
QUICK := tests/test_architecture.py tests/test_maps.py tests/test_readme.py tests/artifacts tests/losses tests/plugins/test_registry.py \
	tests/variants $(addprefix tests/stats/test_,crossed.py equivalence.py families.py) $(addprefix tests/training/test_,plain_loop.py train.py) \
	$(addprefix tests/models/test_,logprobs.py packing.py) tests/evals/test_winrate.py

quick: $(STAMP) ## the tests that matter most, in under a minute
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow" $(QUICK) $(ARGS)

slow: $(STAMP) ## the tests that take more than ten seconds each
	$(BIN)/python -m pytest -n 2 --dist worksteal -m slow $(ARGS)

coverage: $(STAMP) ## the test suite, and the lines that it does not reach
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --cov --cov-report term-missing:skip-covered $(ARGS)

witness: $(STAMP) ## whether a refactoring changed any number: make witness SINCE=main
	$(BIN)/python tests/witness.py since $(SINCE)

check: $(STAMP) ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy dpobench variants evals

wheel: $(STAMP) ## build the wheel, install it elsewhere, run the demo's tiny preset from another folder
	$(BIN)/python -m pip install --quiet --constraint constraints.txt build
	rm -rf dist .wheel && $(BIN)/python -m build --outdir dist .
	$(PYTHON) -m venv .wheel
	.wheel/bin/python -m pip install --quiet --constraint constraints.txt dist/*.whl
	$(BIN)/python -m zipfile -l dist/*.whl | awk 'NR>1 {split($$1, part, "/"); print part[1]}' | sort -u
	cd .wheel && bin/dpobench run --preset tiny --variants dpo,ipo,cdpo --beta-grid 0.1,0.5 --out run

bench: $(STAMP) ## our training step and our sweep against TRL's on the same work
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[parity]'
	$(BIN)/dpobench bench --sweep $(ARGS)

gpu: $(STAMP) ## the tests that need a CUDA device, and the bench on it
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[parity]'
	$(BIN)/python -m pytest -m gpu
	$(BIN)/dpobench bench --gpu $(ARGS)

clean: ## remove what the targets made, results apart
	rm -rf $(VENV) .wheel dist build .mypy_cache .ruff_cache .pytest_cache
