"""The ops as torch sees them, refusals, and which implementation serves them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import dfrot_kernels
from dfrot_kernels import abi, native, ops
from dfrot_kernels.ops import kv_attention, prompt_attention, tile16

ONE = torch.ones(1, 1)
needs_library = pytest.mark.skipif(not native.active(), reason="no native library here")


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if not key.startswith("DFQ_")} | environment
    return subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120, check=False
    )


def samples(example) -> dict[str, list[tuple[object, ...]]]:
    w, s = example(9, 70, 32).weight, example(9, 70, 0, True).weight
    x = torch.randn(5, 70, generator=torch.Generator().manual_seed(0))
    q, x_scale, x_zero = torch.ops.dfq.quantize_per_token(x, 4, False, 1.0)
    kv = torch.ops.dfq.kv_quantize(x, 4, False, 1.0)
    new = torch.randn(1, 2, 2, 16, generator=torch.Generator().manual_seed(1))
    stores = tuple(part for _ in range(2) for part in torch.ops.dfq.kv_quantize(new.transpose(0, 1), 4, False, 1.0))
    b = example(9, 70, 32, True, 8).weight
    integer = [
        (q, x_scale, x_zero, w.packed, w.scale, w.zero, 32),
        (q, x_scale, x_zero, s.packed, s.scale, None, 0),
    ]
    return {
        "pack": [(w.codes(), 4), (w.codes() % 8, 3), (w.codes(), 8)],
        "unpack": [(w.packed, 4, 70), (w.codes(), 8, 70)],
        "quantize_per_token": [(x, 4, True, 0.9), (x.bfloat16(), 8, False, 1.0)],
        "hadamard": [(x, ONE, 2), (x.reshape(5, 7, 10).half(), ONE, 1), (x.double(), ONE, 2)],
        "hadamard_quantize": [(x, ONE, 2, 4, True, 0.9), (x.bfloat16(), None, 0, 8, False, 1.0)],
        "rmsnorm_quantize": [(x, None, None, 1e-5, 8, True, 1.0), (x, x.clone(), x[0].clone(), 1e-5, 4, False, 1.0)],
        "silu_mul_hadamard_quantize": [(x, x, ONE, 1, 4, False, 1.0), (x.half(), x.half(), None, 0, 8, True, 1.0)],
        "dequantize": [(w.packed, w.scale, w.zero, 4, 70, 32), (s.packed, s.scale, None, 4, 70, 0)],
        "w4a16_mm": [(x, w.packed, w.scale, w.zero, 32), (x.bfloat16()[None], s.packed, s.scale, None, 0)],
        "w8a16_mm": [(x, b.packed, b.scale, 32), (x.half()[None], b.packed, b.scale[:, :1].contiguous(), 0)],
        "w4a8_mm": integer,
        "w4a4_mm": integer,
        "kv_quantize": [(x, 4, False, 1.0), (x[None].half(), 3, True, 0.9)],
        "kv_append": [(new, new, *stores, 0, 4, 1.0, ONE, 16), (new.half(), new.half(), *stores, 0, 4, 0.9, None, 0)],
        "kv_attention": [(new, *stores, 2, 16, 4, 0.25, ONE, 16, *(None,) * 5)],
        "kv_dequantize": [(*kv, 70, 4, torch.float32), (kv[0], kv[1], None, 70, 4, torch.bfloat16)],
    }


# checked beside their own tests
OTHERS = {"kv_append", *(op.name for op in (*kv_attention.OPS, *prompt_attention.OPS, *tile16.OPS))}
BASIC = [op for op in ops.SCHEMAS if op not in OTHERS]


@pytest.mark.parametrize("op", BASIC)
def test_opcheck(isa, example, op):
    """Schema, shape inference, autograd registration and tracing, for the kernel and the reference alike."""
    cases = samples(example)[op]
    assert cases
    for args in cases:
        torch.library.opcheck(getattr(torch.ops.dfq, op).default, args)


@pytest.mark.parametrize("op", ops.SCHEMAS)
def test_every_op_says_what_serves_it(op):
    implementation, reason = dfrot_kernels.which(op)
    assert implementation in {"reference", "native-scalar", "native-avx2", "native-avx512"}
    assert len(reason) > 20
    assert dfrot_kernels.which(op, "cuda")[0] in {"reference", "triton"}
    assert op in {row["op"] for row in dfrot_kernels.report()}


def test_calls_that_are_no_operators_are_reported(isa):
    rows = {row["op"]: row["implementation"] for row in dfrot_kernels.report()}
    for name in ("decoder blocks", "draft pass"):
        assert rows[name] == ("reference" if isa == "reference" else f"native-{isa}")
        assert name not in {row["op"] for row in dfrot_kernels.report("cuda")}


def test_an_unknown_op_is_refused():
    with pytest.raises(ValueError, match="w5a5_mm does not exist"):
        dfrot_kernels.which("w5a5_mm")


def _codes(*shape: int) -> torch.Tensor:
    return torch.zeros(*shape, dtype=torch.uint8)


BF16 = torch.ones(3, 1, dtype=torch.bfloat16)
TOKENS = (torch.zeros(2, 8, dtype=torch.int8), torch.ones(2), torch.zeros(2, dtype=torch.int32))
REFUSED = [
    ("pack", (_codes(2, 8), 9), "bits is 9"),
    ("pack", (_codes(8), 4), "codes has shape"),
    ("pack", (torch.zeros(2, 8), 4), "codes is float32, uint8"),
    ("unpack", (_codes(2, 3), 4, 8), "4 bytes a row are needed"),
    ("quantize_per_token", (torch.zeros(2, 3, dtype=torch.int32), 4, True, 1.0), "x is int32"),
    ("quantize_per_token", (torch.zeros(2, 3), 4, True, 0.0), "clip is 0"),
    ("quantize_per_token", (torch.zeros(2, 3), 1, True, 1.0), "bits is 1"),
    ("hadamard", (torch.zeros(2, 12), ONE, 8), "block 8 does not divide"),
    ("hadamard", (torch.zeros(2, 12), ONE, 12), "not base order 1 times a power of two"),
    ("hadamard", (torch.zeros(2, 12), torch.ones(2, 3), 4), "a square is needed"),
    ("hadamard", (torch.zeros(2, 12), ONE, 0), "block 0"),
    ("w4a16_mm", (torch.zeros(2, 8), _codes(3, 5), BF16, None, 0), "4 bytes a row are needed"),
    ("w4a16_mm", (torch.zeros(2, 8), _codes(3, 4), BF16.float(), None, 0), "scale is float32, bfloat16"),
    ("w4a16_mm", (torch.zeros(2, 8), _codes(3, 4), BF16, None, 4), r"scale has shape \(3, 1\), \(3, 2\)"),
    ("w4a16_mm", (torch.zeros(2, 8), _codes(3, 4), BF16, _codes(2, 1), 0), "zero has shape"),
    ("w4a16_mm", (torch.zeros(2, 8), _codes(3, 4), BF16, None, -1), "group is -1"),
    ("w4a16_mm", (torch.zeros(2, 8, dtype=torch.int64), _codes(3, 4), BF16, None, 0), "x is int64"),
    ("w8a16_mm", (torch.zeros(2, 8), _codes(3, 4), BF16, 0), "8 bytes a row are needed"),
    ("w8a16_mm", (torch.zeros(2, 24), _codes(3, 24), BF16.repeat(1, 3), 8), "group is 8"),
    ("w4a8_mm", (TOKENS[0].int(), *TOKENS[1:], _codes(3, 4), BF16, None, 0), "q is int32, int8"),
    ("w4a8_mm", (TOKENS[0], torch.ones(3), TOKENS[2], _codes(3, 4), BF16, None, 0), "x_scale has shape"),
    ("w4a4_mm", (*TOKENS[:2], torch.zeros(2), _codes(3, 4), BF16, None, 0), "x_zero is float32, int32"),
    ("dequantize", (_codes(3, 4), BF16, None, 3, 8, 0), "3 bytes a row are needed"),
    ("kv_quantize", (torch.zeros(2, 0), 4, True, 1.0), "rows are needed"),
    ("kv_dequantize", (_codes(2, 4), torch.ones(2).half(), None, 9, 4, torch.float32), "packed has shape"),
    ("kv_dequantize", (_codes(2, 4), torch.ones(3).half(), None, 8, 4, torch.float32), "scale has shape"),
]


@pytest.mark.parametrize(("op", "args", "message"), REFUSED)
def test_wrong_arguments_are_refused_by_name(op, args, message):
    with pytest.raises(ValueError, match=message) as caught:
        getattr(torch.ops.dfq, op)(*args)
    assert str(caught.value).startswith(f"dfq::{op}: ")


def test_the_reference_can_be_forced():
    """DFQ_IMPL=reference gives plain torch, says so, and computes the same."""
    result = run(
        "import torch, dfrot_kernels as d\n"
        "assert {r['implementation'] for r in d.report()} == {'reference'}, d.report()\n"
        "print(d.which('w4a8_mm')[1])\n"
        "q, s, z = torch.ops.dfq.quantize_per_token(torch.arange(-4., 4.).reshape(1, 8), 4, False, 1.0)\n"
        "packed, one = torch.full((2, 4), 0x99, dtype=torch.uint8), torch.ones(2, 1).bfloat16()\n"
        "y = torch.ops.dfq.w4a8_mm(q, s, z, packed, one, None, 0)\n"
        "print(q.flatten().tolist(), z.tolist(), round(y[0, 0].item(), 4))\n",
        DFQ_IMPL="reference",
    )
    assert result.returncode == 0, result.stderr
    assert "DFQ_IMPL=reference" in result.stdout
    # scale 7/15, zero round(60/7) - 8 = 1; x / scale = 15/7 times -4..3, rounded half to even, plus one
    q = [-8, -5, -3, -1, 1, 3, 5, 7]
    assert f"{q} [1] {sum(code - 1 for code in q) * 7 / 15:.1f}" in result.stdout


@pytest.fixture
def reload(monkeypatch) -> Iterator[Callable[..., bool]]:
    """`reload(DFQ_IMPL=...)` loads the library as a process with that environment would."""
    before = native._library, native._status, native.isa() if native.active() else None

    def load(**environment: str) -> bool:
        for name in ("DFQ_IMPL", "DFQ_CPU_ISA"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return native.load()

    yield load
    native._library, native._status = before[:2]
    if before[2] is not None:
        native._library.dfq_set_isa(native.ISAS.index(before[2]))


def test_unknown_choices_are_refused(reload):
    with pytest.raises(RuntimeError, match="DFQ_IMPL='fast' is unknown; use native or reference"):
        reload(DFQ_IMPL="fast")
    if native.active():
        with pytest.raises(RuntimeError, match=r"DFQ_CPU_ISA='mmx': .* known: scalar, avx2, avx512"):
            reload(DFQ_CPU_ISA="mmx")


def test_without_a_usable_library_the_reason_is_told(reload, monkeypatch, tmp_path):
    monkeypatch.setattr(native, "_library", None)
    monkeypatch.setattr(native, "_find", lambda: None)
    assert not reload()
    assert "not installed" in dfrot_kernels.which("w4a8_mm")[1]
    with pytest.raises(RuntimeError, match=r"DFQ_IMPL=native, but libdfq_cpu\.so is not installed"):
        reload(DFQ_IMPL="native")
    broken = tmp_path / "libdfq_cpu.so"
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(native, "_find", lambda: broken)
    with pytest.warns(RuntimeWarning, match="cannot be loaded"):
        assert not reload()
    assert str(broken) in dfrot_kernels.which("hadamard")[1]


@needs_library
def test_a_library_of_another_interface_is_not_used(reload, monkeypatch):
    monkeypatch.setattr(abi, "VERSION", 999)
    with pytest.warns(RuntimeWarning, match="this package needs `version 999`"):
        assert not reload()


@needs_library
def test_an_instruction_set_this_processor_lacks_is_refused(reload, monkeypatch):
    class Old:
        """A library on a processor with nothing beyond the basics."""

        def dfq_set_isa(self, number: int) -> int:
            return 0 if number == 0 else 2

        def dfq_isa_supported(self, number: int) -> int:
            return int(number == 0)

    monkeypatch.setattr(native, "_open", lambda path: Old())
    with pytest.raises(RuntimeError, match="cannot run avx2; it can run scalar"):
        reload(DFQ_CPU_ISA="avx2")


@needs_library
def test_the_instruction_set_can_be_forced(reload):
    for name in native.available_isas():
        assert reload(DFQ_CPU_ISA=name, DFQ_IMPL="native")
        assert dfrot_kernels.which("w4a8_mm") == (f"native-{name}", f"libdfq_cpu, DFQ_CPU_ISA={name}")


def test_instruction_sets_are_numbered_as_in_the_header():
    header = (Path(__file__).parents[2] / "kernels/csrc/dfq_abi.h").read_text()
    (line,) = [line for line in header.splitlines() if line.startswith("enum dfq_instruction_set {")]
    numbers = dict(re.findall(r"DFQ_(\w+) = (\d+)", line))
    assert numbers == {name.upper(): str(number) for number, name in enumerate(native.ISAS)}


def test_other_processors_are_served_by_portable_code_that_says_so():
    assert "portable code" in native._choice("scalar", "riscv64")
    assert "riscv64" in native._choice("scalar", "riscv64")
    assert "(dotprod)" in native._choice("dotprod", "aarch64")
    assert "(scalar)" in native._choice("scalar", "x86_64")
    assert "(avx2)" in native._choice("avx2", "x86_64")


@needs_library
def test_native_only_forbids_the_fallback_for_other_tensors(monkeypatch):
    """A silent fallback would be a false benchmark: with DFQ_IMPL=native the reference refuses to run."""
    monkeypatch.setenv("DFQ_IMPL", "native")
    assert torch.ops.dfq.pack(_codes(2, 4), 4).shape == (2, 2)
    with pytest.raises(RuntimeError, match="dfq::pack: DFQ_IMPL=native, but no kernel"):
        ops.OPS["pack"].only_reference()(_codes(2, 4), 4)


@needs_library
def test_a_forked_child_can_compute():
    """Threads do not survive fork: the child must not wait for workers it does not have. (Torch's own operators do, so
    the child compares row by row, which takes one thread.)"""
    code = (
        "import os, torch, dfrot_kernels\n"
        "torch.set_num_threads(2)\n"
        "x, one = torch.randn(64, 4096), torch.ones(1, 1)\n"
        "wanted = torch.ops.dfq.hadamard(x, one, 4096)\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    got = torch.ops.dfq.hadamard(x, one, 4096)\n"
        "    os._exit(0 if all(map(torch.equal, got, wanted)) else 1)\n"
        "assert os.waitpid(pid, 0)[1] == 0\n"
    )
    done = run(code)
    assert done.returncode == 0, done.stderr


def test_an_install_with_a_compiler_has_the_library() -> None:
    """Everything else would pass without it, in plain torch: a build that lost it must not go unseen."""
    if shutil.which("c++") is None or os.environ.get("DFQ_NO_NATIVE") or os.environ.get("DFQ_IMPL") == "reference":
        pytest.skip("a pure install")
    assert native.available_isas()
