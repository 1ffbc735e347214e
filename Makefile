# Everything lives in .venv; the first target that needs it makes it.
PYTHON ?= python3
BIN := .venv/bin
# Without a GPU the pinned torch is taken; with one, pip chooses the build for it.
CONSTRAINTS := $(shell command -v nvidia-smi >/dev/null 2>&1 || echo "-c constraints-cpu.txt")
CHROMIUM := $(shell command -v chromium chromium-browser google-chrome 2>/dev/null | head -n 1)

.PHONY: setup demo test coverage check docs bench studies browser clean

setup: .venv/installed

.venv/installed: pyproject.toml constraints-cpu.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check $(CONSTRAINTS) --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/directalign demo --out runs/demo

test: setup browser
	$(BIN)/pytest -n 2 --dist worksteal

# Which lines the tests reach; a third slower than the tests alone.
coverage: setup browser
	$(BIN)/pytest -n 2 --dist worksteal --cov --cov-report=term:skip-covered

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

# The documents as a site, build/site/index.html, with every link checked.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# Measures everything that the documents quote, records it with machine, commit and seed, and writes the documents.
bench: demo
	$(BIN)/python benchmarks/replay_reference.py $(basename $(wildcard tests/fixtures/reference/*.json))
	mkdir -p benchmarks/results && cp runs/demo/summary.json benchmarks/results/demo.json
	$(BIN)/directalign demo --full && cp runs/demo_full/summary.json benchmarks/results/demo_full.json
	$(BIN)/python benchmarks/world_runs.py
	$(BIN)/python benchmarks/offline_cost.py
	$(BIN)/python benchmarks/recipe_memory.py
	$(BIN)/python benchmarks/simulated_voters.py
	$(BIN)/python benchmarks/gpu_step.py
	$(BIN)/python tools/write_numbers.py

# Every study in its full size, hours of it; each resumes where it was stopped.
STUDIES := learning_rates asking unpromptable rivals second_world table1 convergence frontier timesteps control_phrases inversion anchor recovery ddpm stability suggested_phrases soft_prompts reward_finetuning defences early_stopping coverage few_step
studies: setup
	for name in $(STUDIES); do $(BIN)/python -m experiments $$name && $(BIN)/python tools/write_numbers.py --record $$name runs/study_$$name || exit 1; done
	$(BIN)/python tools/write_numbers.py

# The page tests need a browser; on a build server it is installed, elsewhere they are skipped with a reason.
browser:
ifeq ($(CHROMIUM),)
	if [ -n "$$CI" ] && command -v apt-get >/dev/null; then apt-get update -qq && apt-get install -qq -y chromium chromium-driver >/dev/null || echo "no browser could be installed: the page tests will be skipped"; fi
endif

clean:
	rm -rf .venv runs .pytest_cache .ruff_cache .coverage
