# Two commands on a fresh machine: `make demo` and `make test`.
# PYTHON picks the interpreter (3.11 or newer); pip's own settings (indexes, proxies) are honoured.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-all arm-root lint bench clean

demo: $(VENV)/.installed
	$(BIN)/edge-resnet compress demo --target tflite-int8 --target onnx-int8 --target coreml-int8 --out runs/demo

test: $(VENV)/.test lint
	$(BIN)/pytest -m "not slow"

test-all: $(VENV)/.test-all lint
	-./tests/install_tools.sh
	-$(BIN)/python -m edge_resnet.devices.arm_root
	$(BIN)/pytest

# A small ARM64 Linux in the user's cache folder (or EDGE_RESNET_ARM_ROOT), for --device qemu://cortex-a76 and the like.
arm-root: $(VENV)/.installed
	$(BIN)/python -m edge_resnet.devices.arm_root

lint: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Reruns the tables under benchmarks/ (about half an hour; needs the real data, see benchmarks/README.md), but for
# benchmarks.coverage, which takes an hour and a half.
bench: $(VENV)/.test .venv-peers/.installed
	for script in startup export_time import_time identity coreml_precision whole_command timing scaling peers_table; do \
		$(BIN)/python -m benchmarks.$$script || exit 1; done

# The other exporters, for benchmarks.peers_table: an environment of their own (3 GB), with versions of its own.
.venv-peers/.installed: benchmarks/peers/requirements.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/pip install --quiet --disable-pip-version-check -r benchmarks/peers/requirements.txt
	@touch $@

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "edge-resnet needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.test: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

# TensorFlow (0.6 GB) for the Keras frontend, NNCF for --quantizer nncf, the NPUs' compilers, and what torch's newer ONNX exporter needs.
$(VENV)/.test-all: $(VENV)/.test
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,keras,nncf,npu]' onnxscript
	@touch $@

clean:
	rm -rf $(VENV) .venv-peers build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
