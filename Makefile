# Every target makes .venv itself. EXTRA=cuda, EXTRA=cuda13 or EXTRA=tpu brings the accelerator's JAX.
PYTHON ?= python3
EXTRA ?=
VENV := .venv
ifneq ($(filter-out cuda cuda13 tpu,$(EXTRA)),)
$(error EXTRA is $(EXTRA); it may be cuda, cuda13 or tpu)
endif
PY := $(VENV)/bin/python
comma := ,
STAMP := $(VENV)/.installed$(EXTRA)
SCALE_STAMP := $(VENV)/.installed-scale
PARITY_STAMP := $(VENV)/.installed-parity
AOT_STAMP := $(VENV)/.installed-aot-tpu
FUZZ_STAMP := $(VENV)/.installed-fuzz
STORAGE_STAMP := $(VENV)/.installed-storage
DOCS_STAMP := $(VENV)/.installed-docs
NOTEBOOKS_STAMP := $(VENV)/.installed-notebooks
# Of make notebooks: the folder of the pages.
PAGES ?= docs
# Of make fuzz: for each target, and which (all where empty; python -m fuzz list names them).
FUZZ_SECONDS ?= 60
FUZZ_TARGETS ?=

# Huge pages for large arrays: without them the kernel's page faults take a third of a training step on a CPU.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: demo demo-real demo-tasks test lint parity aot storage device-report fuzz docs notebooks install clean
.DELETE_ON_ERROR:

install: $(STAMP)

$(STAMP): pyproject.toml hatch_build.py
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "bertgpt needs Python 3.11 or newer; give one: make PYTHON=python3.12")'
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet --editable '.[dev,train,tasks,demo$(if $(EXTRA),$(comma)$(EXTRA))]'
	touch $@

demo: $(STAMP)
	$(PY) -m train pretrain configs/bert_demo.yaml
	$(PY) -m benchmarks.probes runs/bert_demo
	$(PY) -m train fill-mask runs/bert_demo "he was an american [MASK] and film director ."
	$(PY) -m train predict runs/bert_demo \
		--text "The violin is a wooden string instrument." \
		--pair "Most violins have a hollow body, and it is the smallest instrument in the family in regular use."
	$(PY) -m train predict runs/bert_demo \
		--text "The violin is a wooden string instrument." \
		--pair "The party won the election and its leader became prime minister of the country."

demo-real: $(STAMP)
	$(PY) -m benchmarks.demo_data
	$(PY) -m train pretrain configs/bert_demo_real.yaml
	$(PY) -m benchmarks.probes runs/bert_demo_real

demo-tasks: $(STAMP)
	$(PY) -m benchmarks.tasks --seeds 1
	$(PY) -m train evaluate runs/tasks/sentiment_0
	$(PY) -m train predict runs/tasks/sentiment_0 --text "A moving story, beautifully told."
	$(PY) -m train predict runs/tasks/entities_0 --text "Japan beat Syria in Dubai, said Mario Frick."
	$(PY) -m train predict runs/tasks/responses_0 --text "My printer does not print."

test: $(SCALE_STAMP)
	$(PY) -m pytest -n auto --maxprocesses 4 --dist loadfile

lint: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports

$(SCALE_STAMP): $(STAMP)
	$(PY) -m pip install --quiet --editable '.[gpt1,scale,zh]'
	touch $@

parity: $(PARITY_STAMP)
	$(PY) -m pytest tests/parity

$(PARITY_STAMP): $(STAMP)
	$(PY) -m pip install --quiet --editable '.[gpt1,parity]'
	touch $@

device-report: $(SCALE_STAMP)
	$(PY) -m benchmarks.device_report

aot: $(AOT_STAMP)
	$(PY) -m pytest tests/aot

$(AOT_STAMP): $(STAMP)
	$(PY) -m pip install --quiet --editable '.[aot-tpu]'
	touch $@

storage: $(STORAGE_STAMP)
	$(PY) -m pytest tests/storage

$(STORAGE_STAMP): $(STAMP)
	$(PY) -m pip install --quiet --editable '.[storage]'
	touch $@

fuzz: export PYTHONPATH := $(CURDIR):$(CURDIR)/tests
fuzz: export JAX_PLATFORMS := cpu
fuzz: $(FUZZ_STAMP)
	failed=; for name in $(or $(FUZZ_TARGETS),$$($(PY) -m fuzz list)); do \
		$(PY) -m fuzz search $$name $(FUZZ_SECONDS) || failed="$$failed $$name"; \
	done; test -z "$$failed" || { echo "found in:$$failed; inputs lie in tests/fuzz/seeds"; exit 1; }

$(FUZZ_STAMP): $(SCALE_STAMP)
	$(PY) -m pip install --quiet --editable '.[fuzz]'
	touch $@

docs: $(DOCS_STAMP)
	PYTHONPATH=docs $(VENV)/bin/zensical build --clean --strict
	! grep -rnoE --include='*.html' '(src|<link [^>]*href)="https?:[^"]*' site  # nothing is fetched at view time

$(DOCS_STAMP): $(STAMP)
	$(PY) -m pip install --quiet --editable '.[docs]'
	touch $@

notebooks: export PYTHONPATH := $(CURDIR)
notebooks: export JAX_PLATFORMS ?= cpu
notebooks: $(NOTEBOOKS_STAMP)
	$(PY) docs/notebooks/execute.py $(PAGES)

$(NOTEBOOKS_STAMP): $(STAMP)
	$(PY) -m pip install --quiet --editable '.[notebooks]'
	touch $@

clean:
	rm -rf $(VENV)
