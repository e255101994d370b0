# make run    the main job on real data: pretrain, copy, fine-tune, compare; leaves a run folder with a report
# make test   what must hold: export in sync, notebooks clean, lint, types, all pages executed but SLOW_PAGES, the quick tests,
#             on WORKERS cores; make test-all: the rest (SLOW_PAGES, the whole site, experiments by stock papermill, sweeps, benchmarks)
# make docs   the site into _docs/, without Quarto and without a network; make quarto renders it with Quarto
# make lab    JupyterLab on the tutorials, or on PAGE=snn/02_neuron.ipynb; LAB_ARGS='--no-browser --port 9000' hands it
#             more options, as root and in containers LAB_ARGS=--allow-root; tools/jupyter has its settings
# make check  the quick part of make test        make export  notebooks -> package, README
# make dist   a release into dist/: sdist and wheel, checked by twine
# make clean  what these commands made (not runs/)
# make test-versions  the quick tests at the lowest and at the newest versions, all pages from nothing but a wheel; hours. With
#             KEEP=FOLDER what has passed is kept there, and the same command goes on after an interruption
#
# Everything is installed into .venv on first use. PYTHON=python3.12 picks the interpreter. TORCH_ARGS is handed to
# "pip install torch torchvision", for instance TORCH_ARGS="--index-url URL" for builds without CUDA. The versions are those of
# constraints.txt, the newest that were tried; LATEST=1 takes the newest there are.

PYTHON ?= python3
TORCH_ARGS ?=
LATEST ?=
CONSTRAINTS := $(if $(LATEST),,--constraint constraints.txt)
NOT_HERE := { echo "The packages could not be installed. If a version in constraints.txt is the cause: make LATEST=1"; exit 1; }
BIN := .venv/bin
READY := .venv/.ready
WORKERS ?= 2
# pages above ten seconds, which make test-all executes
SLOW_PAGES := 02_ann_to_snn|03_brain_like_network|04_wiring_by_ensembles|05_the_bridge|06_your_own_batch|your_recordings|your_network|17_segmentation|19_attention|12_cost_curves|13_surrogates|09_event_pipeline|10_conv_lstm|10_functional|your_responses|17_same_seed|07_execute|09_engine|01_cli|10_convert_folders
NBDEV_TEST := OMP_NUM_THREADS=1 $(BIN)/nbdev_test --n_workers $(WORKERS) --skip_folder_re '^([_.]|experiments)' --do_print --timing
PAGE ?= tutorials/01_spiking_neuron.ipynb
LAB_ARGS ?=
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: run test test-all test-versions docs quarto lab check export dist clean pages pages-all pytest
.DEFAULT_GOAL := run

$(READY): settings.ini setup.py pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "neurobridge needs Python 3.11 or newer: make clean, then make PYTHON=python3.12"; exit 1; }
	@$(BIN)/python -m pip uninstall --quiet --yes neurobridge 2>/dev/null || true  # this package's name before 0.2.0, and another package's
	$(BIN)/python -m pip install --quiet torch torchvision $(TORCH_ARGS) $(CONSTRAINTS) || $(NOT_HERE)
	$(BIN)/python -m pip install --quiet --editable '.[dev,docs]' $(CONSTRAINTS) || $(NOT_HERE)
	@touch $@

run: $(READY)
	$(BIN)/neurobridge run pipe_s -p seeds 3 -p epochs 30 -p pretrain_epochs 30 -p finetune_epochs 3 -p long_epochs 6

test: check pages pytest

test-all: $(READY) pages-all
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "long and not slow" --durations 25

test-versions: $(READY)
	WORKERS=$(WORKERS) $(BIN)/python tools/versions.py $(if $(KEEP),--keep $(KEEP))

check: $(READY)
	@scratch=$$(mktemp -d) && trap 'rm -rf "$$scratch"' EXIT && cp -R nbs neurobridge settings.ini pyproject.toml "$$scratch" \
	&& $(BIN)/python tools/export.py "$$scratch" \
	&& { diff -rq --no-dereference -x .ipynb_checkpoints -x _proc nbs "$$scratch/nbs" || { echo "Notebooks are not clean: run make export"; exit 1; }; } \
	&& { diff -rq -x __pycache__ -x "*.toml" neurobridge "$$scratch/neurobridge" || { echo "The package is not what the notebooks export: run make export"; exit 1; }; }
	$(BIN)/ruff check neurobridge tests tools docsite setup.py
	$(BIN)/ruff format --check --quiet nbs neurobridge tests benchmarks tools docsite setup.py
	$(BIN)/mypy

pages: $(READY)
	$(NBDEV_TEST) --skip_file_re '^([_.]|($(SLOW_PAGES))\.)'

pages-all: $(READY)
	$(NBDEV_TEST) --file_re '^($(SLOW_PAGES))\.'

pytest: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not long and not slow" --durations 25

docs: $(READY)
	$(BIN)/python -m docsite

# with a real Quarto; README.md is touched because nbdev would write it anew, the index of modules that nbdev writes anew is put back, and
# what Quarto leaves behind is removed
quarto: $(READY)
	@command -v quarto >/dev/null || { echo "quarto is not on the PATH; make docs builds the site without it"; exit 1; }
	@touch README.md
	@kept=$$(mktemp -d) && cp -p neurobridge/_modidx.py "$$kept" \
	&& trap 'cp -p "$$kept/_modidx.py" neurobridge && rm -rf "$$kept" nbs/nbdev.yml nbs/index_files nbs/.quarto _proc' EXIT \
	&& PYTHONPATH="$(CURDIR)" $(BIN)/nbdev_docs

# kernels by sockets in a private folder (mode 0700), with a path short enough for them, and no network port; Jupyter reads the
# settings in tools/jupyter beside the user's own
lab: $(READY)
	@place=$$(mktemp -d /tmp/nb-lab.XXXXXX) && trap 'rm -rf "$$place"' EXIT INT TERM HUP \
	&& JUPYTER_RUNTIME_DIR="$$place" JUPYTER_CONFIG_PATH="$(CURDIR)/tools/jupyter$${JUPYTER_CONFIG_PATH:+:$$JUPYTER_CONFIG_PATH}" \
	$(BIN)/jupyter lab --KernelManager.transport=ipc --notebook-dir=nbs --LabApp.default_url=/lab/tree/$(PAGE) $(LAB_ARGS)

export: $(READY)
	$(BIN)/ruff format --quiet nbs tests benchmarks tools docsite setup.py
	$(BIN)/python tools/export.py
	$(BIN)/python -m docsite --readme

dist: $(READY)
	rm -rf build dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/twine check --strict dist/*

clean:
	rm -rf .venv _docs _proc build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
