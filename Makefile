# Everything sets itself up: a virtual environment in .venv, with what the target needs.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PEERS ?= $(PY)

.PHONY: demo test soak check bench cluster networks clean

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "lfm needs Python 3.11 or newer; name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml | $(PY)
	$(PY) -m pip install -q --disable-pip-version-check -e '.[examples]'
	@touch $@

$(VENV)/.test: pyproject.toml | $(PY)
	$(PY) -m pip install -q --disable-pip-version-check -e '.[examples,conda,test]'
	@touch $@

demo: $(VENV)/.demo  ## the paper's application on real molecules
	$(PY) examples/drug_screening.py

test: $(VENV)/.test  ## every test that needs no cluster
	$(PY) -m pytest -q -m 'not cluster and not networks'

SEEDS ?= 20000
ROUNDS ?= 500
FRAMES ?= 1000000
PLUGS ?= 10
NETWORKS ?= full

soak: $(VENV)/.test  ## the same for longer: simulated worlds, killed processes, hostile frames
	LFM_SEEDS=$(SEEDS) LFM_ROUNDS=$(ROUNDS) LFM_FRAMES=$(FRAMES) $(PY) -m pytest -q tests/sim/test_worlds.py tests/process/test_kills.py tests/process/test_fuzz.py
	LFM_PLUGS=$(PLUGS) $(PY) -m pytest -q tests/process/test_plugs.py
	LFM_SOAK=1 $(PY) -m pytest -q tests/process/test_monitor_misbehaviour.py

cluster: $(VENV)/.test  ## tests on a real Slurm and over ssh; needs root and the tools
	$(PY) -m pytest -q -m cluster -rs

networks: $(VENV)/.test  ## cut, slow, lossy and translated networks between namespaces, with figures; needs root and ip
	LFM_NETWORKS=$(NETWORKS) $(PY) -m pytest -q -m networks -rs -s

check: $(VENV)/.test  ## lint, types, import rules
	$(VENV)/bin/ruff check lfm manager worker tests bench examples
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-cache

TRACES ?= ../shared/traces
bench: $(VENV)/.test  ## speed, as ratios in one run; PEERS=PYTHON has parsl, distributed or ray; QUICK=1; JSON=FILE keeps the figures
	$(PY) bench/all.py --peers $(PEERS) $(if $(wildcard $(TRACES)),--traces $(TRACES)) $(if $(QUICK),--quick) $(if $(JSON),--json $(JSON))

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
