# make run    the main job on real data: pretrain, copy, fine-tune, compare; leaves a run folder with a report
# make test   everything that must hold: export in sync, notebooks clean, lint, every page executed, pytest
#             (experiments by stock papermill, the other pages by nbdev_test), on WORKERS cores
# make docs   the site into _docs/
# make lab    JupyterLab on the tutorials, or on PAGE=snn/02_lif.ipynb
# make check  the quick part of make test        make export  notebooks -> package, README
# make clean  what these commands made (not runs/)
#
# Everything is installed into .venv on first use. PYTHON=python3.12 picks the interpreter. TORCH_ARGS is handed to
# "pip install torch torchvision", for instance TORCH_ARGS="--index-url URL" for builds without CUDA.

PYTHON ?= python3
TORCH_ARGS ?=
BIN := .venv/bin
READY := .venv/.ready
WORKERS ?= 2
PAGE ?= tutorials/01_spiking_neuron.ipynb
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: run test docs lab check export clean pages pytest
.DEFAULT_GOAL := run

$(READY): settings.ini setup.py pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "neurobridge needs Python 3.11 or newer: make clean, then make PYTHON=python3.12"; exit 1; }
	$(BIN)/python -m pip install --quiet torch torchvision $(TORCH_ARGS)
	$(BIN)/python -m pip install --quiet --editable '.[dev,docs]'
	@touch $@

run: $(READY)
	$(BIN)/neurobridge run pipe_s -p seeds 3 -p epochs 30 -p pretrain_epochs 30 -p finetune_epochs 3 -p long_epochs 6

test: check pages pytest

check: $(READY)
	@scratch=$$(mktemp -d) && trap 'rm -rf "$$scratch"' EXIT && cp -R nbs settings.ini "$$scratch" && mkdir "$$scratch/neurobridge" \
	&& cd "$$scratch" && "$(CURDIR)/$(BIN)/nbdev_clean" && "$(CURDIR)/$(BIN)/nbdev_export" && cd "$(CURDIR)" \
	&& { diff -rq --no-dereference -x .ipynb_checkpoints -x _proc nbs "$$scratch/nbs" || { echo "Notebooks are not clean: run make export"; exit 1; }; } \
	&& { diff -rq -x __pycache__ -x "*.toml" neurobridge "$$scratch/neurobridge" || { echo "The package is not what the notebooks export: run make export"; exit 1; }; }
	$(BIN)/ruff check neurobridge tests setup.py

pages: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/nbdev_test --n_workers $(WORKERS) --skip_folder_re '^([_.]|experiments)' --do_print --timing

pytest: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --durations 25

docs: $(READY)
	@if command -v quarto >/dev/null; then $(BIN)/nbdev_docs; else $(BIN)/neurobridge docs; fi

lab: $(READY)
	$(BIN)/jupyter lab --notebook-dir=nbs --LabApp.default_url=/lab/tree/$(PAGE)

export: $(READY)
	$(BIN)/nbdev_clean
	@find neurobridge -name '*.py' -delete
	$(BIN)/nbdev_export
	$(BIN)/python -c 'from neurobridge.lab.site import readme; readme()'

clean:
	rm -rf .venv _docs _proc build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
