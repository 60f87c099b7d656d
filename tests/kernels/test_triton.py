"""The Triton kernels: under Triton's interpreter on any machine, on the device where there is one (-m gpu)."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dfrot_kernels
from dfrot_kernels import cuda, ops

SCRIPT = Path(__file__).with_name("triton_cases.py")
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed (pip install 'dfq[gpu]')"
)


def _cases():
    spec = importlib.util.spec_from_file_location("triton_cases", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


triton_cases = _cases()
CASES = {case.name: case for case in triton_cases.cases()}


def _python(*args: str, **environment: str) -> str:
    env = {key: value for key, value in os.environ.items() if not key.startswith(("DFQ_", "TRITON_"))} | environment
    done = subprocess.run([sys.executable, *args], env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@functools.cache
def interpreted() -> dict[str, str]:
    """Name of a case -> what is wrong with it; all of them in one process, which imports torch once."""
    out = _python(str(SCRIPT), TRITON_INTERPRET="1", DFQ_IMPL="reference", OMP_NUM_THREADS="1")
    return dict(json.loads(line) for line in out.splitlines())


def test_cases_are_told_apart():
    assert len(CASES) == len(triton_cases.cases())


@needs_triton
@pytest.mark.parametrize("name", CASES)
def test_interpreted_kernel_agrees_with_the_reference(name):
    assert interpreted()[name] == ""


@needs_triton
def test_the_list_of_ops_is_the_list_of_kernels():
    """Registering reads cuda.OPS, so that it need not import Triton."""
    out = _python("-c", "from dfrot_kernels import cuda; print(*cuda.kernels())", TRITON_INTERPRET="1")
    assert sorted(out.split()) == sorted(cuda.OPS)
    assert {case.op for case in CASES.values()} == set(cuda.OPS)


def test_triton_stays_away_until_a_cuda_tensor_comes():
    code = (
        "import sys, torch, dfrot_kernels\n"
        "torch.ops.dfq.quantize_per_token(torch.ones(2, 8), 4, True, 1.0)\n"
        "dfrot_kernels.which('w4a16_mm', 'cuda')\n"
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'triton'}), torch.cuda.is_initialized())\n"
    )
    assert _python("-c", code).strip() == "[] False"


@pytest.mark.parametrize("op", ops.SCHEMAS)
def test_cuda_is_served_by_what_which_says(op):
    """A kernel is registered for the CUDA key exactly where `which` says so."""
    implementation, reason = dfrot_kernels.which(op, "cuda")
    assert (implementation == "triton") == torch._C._dispatch_has_kernel_for_dispatch_key(f"dfq::{op}", "CUDA")
    assert "riton" in reason


def test_which_says_why_cuda_has_the_reference():
    code = "import dfrot_kernels as d; print(d.which('w4a16_mm', 'cuda'))"
    assert "'reference', 'DFQ_IMPL=reference" in _python("-c", code, DFQ_IMPL="reference")
    missing = (
        "import importlib.util as u\n"
        "find = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'triton' else find(name, *rest)\n"
    ) + code
    assert "'reference', \"triton is not installed" in _python("-c", missing)


@pytest.mark.gpu
@needs_triton
@pytest.mark.parametrize("name", CASES)
def test_kernel_on_the_device_agrees_with_the_reference(name):
    case = CASES[name]
    assert dfrot_kernels.which(case.op, "cuda")[0] == "triton"
    assert triton_cases.fault(case, getattr(torch.ops.dfq, case.op), "cuda") == ""
