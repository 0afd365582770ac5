# make        set up, sweep, report        make test   set up, run the tests
# make setup  set up alone
# make quick  one model, two relations     make CONFIG=path/to.yaml  another config than config.yaml
# make clean  remove what a sweep made     make bench  what the engine costs beside its peers (an hour)
# make test-slurm  the tests that start a real Slurm cluster on this machine
# make test-gpu  the tests that compare a CUDA device with the CPU; says so where there is none
# make scale  what the summary of 100 million lens rows takes: 20 minutes, 10 GB under /tmp
PYTHON ?= python3
CORES ?= all
CONFIG ?= config.yaml
VENV := .venv
PEERS := .venv-bench
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: all setup quick sweep test test-slurm test-gpu bench scale clean
all: sweep
	@$(MAKE) --no-print-directory -s results/report.html
	@vecsweep finding

setup: $(VENV)/ready

quick:
	@$(MAKE) --no-print-directory CONFIG=workflow/config/quick.yaml

SNAKEMAKE = snakemake --logger vecsweep --configfile "$(CONFIG)"

# The full log of a run is in .snakemake/log, those of its jobs are in logs.
sweep: $(VENV)/ready
	@$(SNAKEMAKE) --cores $(CORES)

# The report is written anew only when what it shows is.
results/report.html: results/summary.duckdb $(wildcard results/figures/*.svg workflow/report/*.rst) | $(VENV)/ready
	@$(SNAKEMAKE) --report $@

test: $(VENV)/ready-dev
	ruff check workflow tests
	ruff format --check workflow tests
	mypy
	$(VENV)/bin/pytest -n 2 --dist loadfile --no-loadscope-reorder --ignore tests/slurm

test-slurm: $(VENV)/ready-dev
	$(VENV)/bin/pytest tests/slurm

test-gpu: $(VENV)/ready-dev
	@if $(VENV)/bin/python -c "import torch; raise SystemExit(not torch.cuda.is_available())"; \
	then $(VENV)/bin/pytest -m gpu -rs tests; \
	else echo "test-gpu did not run: torch finds no CUDA device on this machine"; fi

# All engines in turn, in one run: ours and its peers, each of those in an environment of its own.
bench: $(VENV)/ready $(PEERS)/peers/ready $(PEERS)/nnterp/ready
	snakemake --cores $(CORES) --quiet all -- results/models/gemma3-270m/model.json
	vecsweep bench --peers $(PEERS)

scale: $(VENV)/ready
	vecsweep scale $(or $(TMPDIR),/tmp)/vecsweep-scale

clean:
	rm -rf results/*/ results/*.duckdb results/*.html results/groups.json results/.[!.]* logs .snakemake

$(VENV)/ready: envs/requirements.lock envs/models.lock pyproject.toml
	@echo "Setting up $(VENV): a minute, once"
	@test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/pip install -q --disable-pip-version-check -r envs/requirements.lock
	@$(VENV)/bin/pip install -q --disable-pip-version-check --no-deps -r envs/models.lock -e .
	@touch $@

$(VENV)/ready-dev: $(VENV)/ready envs/dev.lock
	$(VENV)/bin/pip install -q --disable-pip-version-check -r envs/dev.lock
	touch $@

$(PEERS)/%/ready: envs/%.lock
	test -d $(PEERS)/$* || $(PYTHON) -m venv $(PEERS)/$*
	$(PEERS)/$*/bin/pip install -q --disable-pip-version-check -r $<
	touch $@
