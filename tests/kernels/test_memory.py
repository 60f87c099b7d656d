"""Memory of a loaded checkpoint: what was prepacked is not kept in the mapping of the file as well."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dfrot.quant.modules.linear import QuantLinear
from dfrot.quant.plan import LinearPlan
from dfrot_kernels import memory, native

SIZE = 1 << 20
linux = pytest.mark.skipif(sys.platform != "linux", reason="pages are given back on Linux only")


def resident(x: torch.Tensor) -> int:
    """Resident bytes of the mapping that x lies in."""
    inside = False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        if match := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(match[1], 16) <= x.data_ptr() < int(match[2], 16)
        elif inside and line.startswith("Rss:"):
            return int(line.split()[1]) << 10
    return 0


@pytest.fixture
def mapped(tmp_path: Path) -> torch.Tensor:
    """A view of a file, read once."""
    wanted = torch.randint(0, 256, (SIZE,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    save_file({"x": wanted}, tmp_path / "x.safetensors")
    found = torch.from_file(str(tmp_path / "x.safetensors"), shared=False, size=SIZE, dtype=torch.uint8)
    int(found.sum())
    return found


@linux
def test_pages_of_a_file_go_and_come_back(mapped: torch.Tensor) -> None:
    before, held = mapped.clone(), resident(mapped)
    given = memory.drop_pages(mapped)
    assert SIZE - (1 << 17) < given <= SIZE
    assert resident(mapped) <= held - given
    assert torch.equal(mapped, before)


@linux
def test_what_was_written_stays(mapped: torch.Tensor) -> None:
    mapped[SIZE // 2] += 1
    before = mapped.clone()
    assert memory.drop_pages(mapped) == 0
    assert torch.equal(mapped, before)
    part = mapped[: SIZE // 4]  # of which no page was written
    assert memory.drop_pages(part) > 0
    assert torch.equal(mapped, before)


@pytest.mark.parametrize("make", [torch.ones, torch.empty], ids=["ones", "empty"])
def test_other_memory_is_left_alone(make) -> None:  # type: ignore[no-untyped-def]
    x = make(1 << 22, dtype=torch.uint8)
    before = x.clone()
    assert memory.drop_pages(x) == 0
    assert torch.equal(x, before)
    assert memory.drop_pages(torch.empty(0)) == 0
    assert memory.drop_pages(torch.empty(SIZE, device="meta")) == 0


@linux
@pytest.mark.skipif(not native.active(), reason="no native library here")
def test_a_prepared_linear_leaves_its_file(tmp_path: Path) -> None:
    n, k = 256, 8192
    draw = torch.Generator().manual_seed(1)
    stored = {"weight_packed": torch.randint(0, 256, (n, k // 2), dtype=torch.uint8, generator=draw),
              "weight_scale": torch.ones(n, 1, dtype=torch.bfloat16)}  # fmt: skip
    save_file(stored, tmp_path / "x.safetensors")
    loaded = load_file(tmp_path / "x.safetensors")
    plan = LinearPlan("x", n, k, True, 4, 0, True, 16, False, 1.0, None)
    module = QuantLinear(plan, False, torch.float32)
    module.load_state_dict(loaded, assign=True)
    packed = loaded["weight_packed"]
    if memory.drop_pages(packed) == 0:
        pytest.skip("this safetensors does not map its files")
    module.prepare("x")
    assert resident(packed) < packed.numel() // 4
    assert torch.equal(module.state_dict()["weight_packed"], stored["weight_packed"])


def test_freed_memory_can_be_handed_back() -> None:
    memory.release_memory()  # whatever the C library is: it returns
