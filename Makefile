# One command each; CI runs the same ones. `make help` lists them.
PYTHON_IN_VENV := .venv/bin/python
REPOSITORY ?= model_repository
# Ports as in .env.example: make serve HTTP_PORT=8010, HTTP_PORT=8010 make serve, or, for serve and load-ui, a line of .env,
# as Compose ranks them. demo and load take free ports unless they are given some.
from_env_file = $(shell sed -nE "s/^(export +)?$(1) *= *[\"']?([0-9]+).*/\2/p" .env 2>/dev/null | tail -n 1)
given_ports = $(if $(HTTP_PORT),--http-port $(HTTP_PORT)) $(if $(GRPC_PORT),--grpc-port $(GRPC_PORT)) \
	$(if $(METRICS_PORT),--metrics-port $(METRICS_PORT))
serve_ports = --http-port $(or $(HTTP_PORT),$(call from_env_file,HTTP_PORT),8000) \
	--grpc-port $(or $(GRPC_PORT),$(call from_env_file,GRPC_PORT),8001) \
	--metrics-port $(or $(METRICS_PORT),$(call from_env_file,METRICS_PORT),8002)
locust_port = --web-port $(or $(LOCUST_PORT),$(call from_env_file,LOCUST_PORT),8089)

# Where it is set, as in many containers, each of the hundreds of Python processes of a test run compiles its modules anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo serve build test test-tensorrt test-gpu test-exports test-containers load load-ui bench bench-gpu chaos fuzz soak lint audit format clean base dev tensorrt

help: ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

base:
	@sh requirements/install.sh base

dev:
	@sh requirements/install.sh dev

tensorrt: ## set up the builder's TensorRT profile: ModelOpt, PyTorch, TensorRT-RTX
	@sh requirements/install.sh tensorrt

.PHONY: openvino
openvino: base ## add OpenVINO, which runs fp16 of the profile cpu in half of the time where the processor has bfloat16 (180 MB)
	@sh requirements/install.sh openvino

.PHONY: gpu
gpu: ## set up .cache/gpu-venv for an NVIDIA GPU: ONNX Runtime with CUDA, CuPy, nvImageCodec, cuDNN (x86-64, Python 3.11, 3 GB)
	@VENV=.cache/gpu-venv sh requirements/install.sh gpu

demo: base ## from nothing to masks: build, serve, segment five photographs in three precisions over two protocols
	@$(PYTHON_IN_VENV) -m demo --repository "$(REPOSITORY)" --out out $(given_ports)

build: base ## build the reference model's versions for the cpu profile
	@$(PYTHON_IN_VENV) -m builder build --profile cpu --repository "$(REPOSITORY)"

serve: build ## leave a server running on loopback, with a page to try it; says where and how to call it
	@$(PYTHON_IN_VENV) -m serving run --gateway --profile cpu --repository "$(REPOSITORY)" $(serve_ports)

test: test-unit ## unit tests, and integration tests against the real server
	@$(PYTHON_IN_VENV) -m pytest tests/integration --numprocesses=3 --dist=loadfile --no-loadscope-reorder --durations=20

.PHONY: test-unit
test-unit: dev ## unit tests alone, on all cores: no server, about a minute on two
	@$(PYTHON_IN_VENV) -m pytest tests/unit --numprocesses=auto --maxprocesses=8 --dist=worksteal --durations=20

test-tensorrt: tensorrt ## build TensorRT plans, and hold the builder against TensorRT's API
	@$(PYTHON_IN_VENV) -m pip install --quiet --disable-pip-version-check --upgrade --no-deps --require-hashes \
		--target .cache/tensorrt-stubs -r requirements/tensorrt-stubs.txt
	@TENSORRT_STUBS=.cache/tensorrt-stubs $(PYTHON_IN_VENV) -m pytest --numprocesses=2 --dist=worksteal --durations=20 tests/unit/builder/tensorrt tests/integration/test_tensorrt_build.py \
		tests/integration/test_tensorrt_fallback.py

test-gpu: dev ## hold the GPU's steps against the CPU's; on a machine with an NVIDIA GPU, with cupy-cuda13x and nvImageCodec
	@$(PYTHON_IN_VENV) -m pytest tests/gpu --durations=10

test-exports: dev ## export models with ultralytics in many ways, and compare what is served with its own predict
	@VENV=.cache/exports-venv sh requirements/install.sh exports
	@EXPORTS_VENV=.cache/exports-venv $(PYTHON_IN_VENV) -m pytest tests/real_exports

test-containers: dev ## build the images and run the stack in a container engine: needs Docker with Compose
	@$(PYTHON_IN_VENV) -m pytest tests/containers -s --durations=20

.PHONY: test-adapters client-wheel
test-adapters: dev ## the client's wheel in a separate environment, and its results in supervision, SAHI, trackers, Label Studio
	@VENV=.cache/adapters-venv sh requirements/install.sh adapters
	@ADAPTERS_VENV=.cache/adapters-venv $(PYTHON_IN_VENV) -m pytest tests/adapters

client-wheel: base ## build the client alone as a wheel, in out/
	@$(PYTHON_IN_VENV) requirements/client_wheel.py out

load: dev build ## from nothing to a two-minute comparison of the precisions under load; prints where its report is
	@$(PYTHON_IN_VENV) -m load compare --repository "$(REPOSITORY)" --protocols grpc --users 1,2,4 --duration 2.5 \
		--warm-up 0.5 --rounds 3 --out out/load $(given_ports)

load-ui: dev build ## Locust's web page on 127.0.0.1:8089, with a server to press on
	@$(PYTHON_IN_VENV) -m load ui --repository "$(REPOSITORY)" $(given_ports) $(locust_port)

bench: dev build ## measure the ensemble against the bare model, the plain ways and ultralytics (a few minutes)
	@$(PYTHON_IN_VENV) -m bench all --repository "$(REPOSITORY)" --out out/bench

bench-gpu: dev ## the ensemble on a GPU machine, profile cuda, against what each part does alone (needs make gpu)
	@$(PYTHON_IN_VENV) -m bench gpu --repository "$(REPOSITORY)" --out out/bench

chaos: dev build ## hostile input, overload and faults on the real server; writes docs/reliability.md's figures (half an hour)
	@$(PYTHON_IN_VENV) -m tests.chaos --repository "$(REPOSITORY)" --out out/chaos

fuzz: dev ## five minutes of coverage-guided fuzzing of what reads bytes from elsewhere; findings go to out/fuzz
	@$(PYTHON_IN_VENV) -m pip install --quiet --disable-pip-version-check --upgrade --no-deps --require-hashes \
		--target .cache/atheris -r requirements/fuzz.txt
	@$(PYTHON_IN_VENV) -m tests.fuzz --out out/fuzz

soak: dev build ## twenty minutes of mixed traffic, every answer compared
	@$(PYTHON_IN_VENV) -m tests.chaos.soak --repository "$(REPOSITORY)" --minutes 20 --out out/chaos

lint: dev ## linter, formatter, type checker, and which room imports which
	@$(PYTHON_IN_VENV) -m ruff check .
	@$(PYTHON_IN_VENV) -m ruff format --check .
	@$(PYTHON_IN_VENV) -m mypy
	@.venv/bin/lint-imports

audit: dev ## look every pinned package up: withdrawn, changed, how old; known vulnerabilities where pip-audit can look
	@$(PYTHON_IN_VENV) requirements/audit.py

format: dev ## format the code
	@$(PYTHON_IN_VENV) -m ruff format .

clean: ## remove the environment, caches and built versions
	rm -rf .venv .cache out .mypy_cache .import_linter_cache .ruff_cache .pytest_cache
	find "$(REPOSITORY)"/network_* -mindepth 1 -maxdepth 1 -type d ! -name configs -exec rm -rf {} +
