# `make demo` and `make test` do all of their own set-up, in .venv and build/.
PYTHON ?= python3
BIN := $(CURDIR)/.venv/bin
OLDEST := $(CURDIR)/.venv-oldest/bin
PROJECT := build/my_project
INNER := {{cookiecutter.project_slug}}

# Kills of a run, and changes of one that goes on, in `make faults`, which takes an hour; `make test` has 14 kills.
N ?= 105
CHANGES ?= 210
# pip would compile some 27,000 files on one core, COMPILE does on all; a few are for another Python and cannot be.
PIP := $(BIN)/pip install --quiet --no-compile
COMPILE := $(BIN)/python -W ignore -m compileall -qq -j 0 .venv/lib || true
# TORCH=cpu takes a torch without CUDA's libraries; uv knows where it lies, and others (its --torch-backend).
TORCH ?=
INSTALL = $(if $(TORCH),$(BIN)/uv pip install --quiet --python $(BIN)/python --torch-backend $(TORCH),$(PIP))
# One more than there are cores: the tests of SLURM, Ray and of kills wait for much of their time.
WORKERS ?= $(shell $(PYTHON) -c "import os; print(os.cpu_count() + 1)")

.PHONY: demo test test-oldest faults bench bake lint lock clean

demo: .venv/project bake
	cd $(PROJECT) && $(BIN)/python main.py --model_name lenet --dataset digits --max_epochs 15
	@echo
	@echo "The project stands in $(PROJECT). What to type next, there:"
	@echo "  $(BIN)/tensorboard --logdir lightning_logs"
	@echo "  $(BIN)/python main.py --model_name lenet --dataset mnist --max_epochs 5"

test: .venv/installed lint
	$(BIN)/python -m pytest -n $(WORKERS) --durations 25

# The lowest versions that the project allows, in an environment of their own: some 5 GB and half an hour.
test-oldest: .venv-oldest/installed
	$(OLDEST)/python -m pytest -n auto -m "not slow" tests/engine

.venv-oldest/installed: pyproject.toml $(INNER)/pyproject.toml
	$(PYTHON) -m venv --clear .venv-oldest
	$(OLDEST)/pip install --quiet ".[dev]"
	$(OLDEST)/cookiecutter . --no-input --overwrite-if-exists -o build
	$(OLDEST)/uv pip compile --quiet --python $(OLDEST)/python --resolution lowest-direct --all-extras \
		$(PROJECT)/pyproject.toml --output-file build/oldest.txt
	$(OLDEST)/uv pip install --quiet --python $(OLDEST)/python --requirements build/oldest.txt
	touch $@

faults: .venv/installed
	$(BIN)/python tests/kills.py "$(INNER)" $(N) $(CHANGES)
	$(BIN)/python tests/faults.py "$(INNER)" 3
	FUZZ=1 $(BIN)/python -m pytest tests/engine/test_fuzz.py

lint: .venv/installed
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

# A few minutes; with LONG=1 all of benchmarks/, which wants an hour and a machine of its own.
bench: .venv/installed
	$(BIN)/python benchmarks/startup.py "$(INNER)"
	$(BIN)/python benchmarks/step.py "$(INNER)" $(if $(LONG),5 --long,3)
	$(BIN)/python benchmarks/job.py "$(INNER)" $(if $(LONG),5,2 --only job first bake)
ifdef LONG
	$(BIN)/python benchmarks/predict.py "$(INNER)" 3
	$(BIN)/python benchmarks/images.py "$(INNER)"
	$(BIN)/python benchmarks/scale.py "$(INNER)" 3 --long
	$(BIN)/python benchmarks/ddp.py "$(INNER)"
	$(BIN)/python -c "import sys, torch; sys.exit(torch.cuda.is_available())" || \
		$(BIN)/python benchmarks/gpu.py "$(INNER)"
endif

bake: .venv/project
	$(BIN)/cookiecutter . --no-input --overwrite-if-exists -o build

# What a project needs and nothing else; the tests' packages come on top.
.venv/project: pyproject.toml $(INNER)/pyproject.toml
	$(PYTHON) -m venv .venv
	$(PIP) . $(if $(TORCH),uv)
	$(BIN)/cookiecutter . --no-input --overwrite-if-exists -o build
	$(INSTALL) $(PROJECT)
	$(COMPILE)
	touch $@

.venv/installed: .venv/project
	$(PIP) ".[dev]" "$(PROJECT)[dev]"
	$(COMPILE)
	touch $@

# constraints.txt of a project: the versions in .venv, with which the tests have run.
lock: .venv/installed
	$(BIN)/uv pip freeze --python $(BIN)/python | grep -v " @ " > build/tried.txt
	$(BIN)/uv pip compile --quiet --no-header --no-annotate --all-extras --python $(BIN)/python \
		--constraints build/tried.txt $(PROJECT)/pyproject.toml --output-file build/needed.txt
	echo "# The versions that the template was tried with: pip install -e . -c constraints.txt" > "$(INNER)/constraints.txt"
	grep --fixed-strings --line-regexp --file build/tried.txt build/needed.txt >> "$(INNER)/constraints.txt"

clean:
	rm -rf .venv .venv-oldest build
