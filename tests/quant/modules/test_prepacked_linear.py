"""A packed linear holds its weight once, and nobody outside the kernels notices in which layout."""

from __future__ import annotations

import copy

import pytest
import torch

from dfrot.quant.modules.dense_linear import DenseLinear
from dfrot.quant.modules.linear import QuantLinear
from dfrot.quant.plan import LinearPlan
from dfrot_kernels import native
from dfrot_kernels.layouts import PackedWeight

N, K = 24, 96
needs_library = pytest.mark.skipif(not native.active(), reason="no native library here")


def make(a_bits: int, group: int = 0, symmetric: bool = True) -> tuple[QuantLinear, dict[str, torch.Tensor]]:
    """A prepared linear and the tensors it was loaded from."""
    generator = torch.Generator().manual_seed(group)
    groups = -(-K // group) if group else 1
    codes = torch.randint(1, 16, (N, K), dtype=torch.uint8, generator=generator)
    scale = (torch.rand(N, groups, generator=generator) + 0.5).bfloat16()
    zero = None if symmetric else torch.randint(0, 16, (N, groups), dtype=torch.uint8, generator=generator)
    packed = PackedWeight.from_codes(codes, scale, zero, 4, group)
    module = QuantLinear(
        LinearPlan("x", N, K, True, 4, group, symmetric, a_bits, False, 1.0, None), True, torch.float32
    )
    tensors = {"weight_packed": packed.packed, "weight_scale": scale, "bias": torch.randn(N, generator=generator)}
    if zero is not None:
        tensors["weight_zero"] = zero
    module.load_state_dict(tensors)
    module.prepare("x")
    return module, tensors


@pytest.mark.parametrize("a_bits", [4, 16])
@pytest.mark.parametrize(("group", "symmetric"), [(0, True), (32, False), (12, False)])
def test_the_state_dict_is_what_was_loaded(a_bits: int, group: int, symmetric: bool) -> None:
    module, tensors = make(a_bits, group, symmetric)
    state = module.state_dict()
    assert set(state) == set(tensors)
    assert all(torch.equal(state[name], tensor) for name, tensor in tensors.items())
    assert all(state[name].dtype == tensor.dtype for name, tensor in tensors.items())


@needs_library
@pytest.mark.parametrize(("group", "tiled"), [(0, True), (32, True), (12, False)])
def test_one_copy_in_memory(group: int, tiled: bool) -> None:
    module, _ = make(4, group, False)
    assert (module.prepared is not None) == tiled
    assert (module.weight_packed is None) == tiled
    names = {"bias", "weight_packed", "weight_scale", "weight_zero"} if not tiled else {"bias"}
    assert {name for name, _ in [*module.named_parameters(), *module.named_buffers()]} == names
    assert (module.prepared is not None and module.prepared.sums is not None) == tiled


@pytest.mark.parametrize("a_bits", [4, 8, 16])
@pytest.mark.parametrize("group", [0, 32, 12])
def test_copies_casts_and_new_tensors(a_bits: int, group: int) -> None:
    module, tensors = make(a_bits, group)
    x = torch.randn(3, K, generator=torch.Generator().manual_seed(1))
    expected = module(x)
    copied = copy.deepcopy(module)
    assert torch.equal(copied(x), expected)
    assert torch.equal(copied.double().float()(x), expected), "scales and codes survive casts"
    assert copied(x.bfloat16()).dtype == torch.bfloat16
    tensors["weight_scale"] = tensors["weight_scale"] * 2
    tensors["bias"] = tensors["bias"] * 2
    copied.load_state_dict(tensors)
    assert torch.allclose(copied(x), 2 * expected, rtol=1e-5)
    assert torch.equal(module(x), expected)
    assert (copied.prepared is None) == (module.prepared is None)


@needs_library
@pytest.mark.parametrize("a_bits", [4, 8])
def test_layouts_and_twin_agree_bit_for_bit(a_bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    module, _ = make(a_bits)
    x = torch.randn(7, K, generator=torch.Generator().manual_seed(2)).bfloat16()
    tiled = module(x)
    assert torch.equal(DenseLinear.twin(module)(x), tiled)
    monkeypatch.setattr("dfrot.quant.modules.linear.PreparedWeight.serves", lambda weight: False)
    plain, _ = make(a_bits)
    assert plain.prepared is None
    assert torch.equal(plain(x), tiled)


@needs_library
@pytest.mark.parametrize("a_bits", [8, 16])
@pytest.mark.parametrize("bias", [None, torch.float32, torch.bfloat16])
def test_past_the_dispatcher_and_through_it(a_bits: int, bias: torch.dtype | None) -> None:
    weight = make(a_bits)[0].prepared
    assert weight is not None
    generator = torch.Generator().manual_seed(3)
    added = None if bias is None else torch.randn(N, generator=generator).to(bias)
    wide = torch.randn(5, 2 * K, generator=generator)
    for x in (wide[:, :K], wide[:, :K].contiguous(), wide[:0, :K], wide.bfloat16()[:, ::2]):
        if a_bits == 16:
            for rows in (x, x.unsqueeze(0), *x[:1]):
                tensors = (rows, weight.tiles, weight.scale, weight.zero, added, N, 0)
                assert torch.equal(weight.linear(rows, added), torch.ops.dfq.w4a16_tiled_mm(*tensors))
        else:
            tokens = torch.ops.dfq.quantize_per_token(x, 8, False, 1.0)
            tensors = (*tokens, weight.tiles, weight.scale, weight.zero, weight.sums, added, N, 0, torch.bfloat16)
            product = weight.integer_linear(*tokens, added, torch.bfloat16)
            assert torch.equal(product, torch.ops.dfq.w4a8_tiled_mm(*tensors))


@needs_library
def test_what_traces_sees_the_operator() -> None:
    weight = make(16)[0].prepared
    assert weight is not None
    x = torch.randn(2, K)
    expected = weight.linear(x)
    compiled = torch.compile(weight.linear, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), expected)
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
        assert weight.linear(torch.empty(2, K)).shape == expected.shape
    assert weight.linear(torch.empty(2, K, device="meta")).device.type == "meta"


@needs_library
@pytest.mark.parametrize("wrong", ["columns", "dtype", "scales", "sums"])
def test_wrong_operands_are_refused_on_the_short_way_too(wrong: str) -> None:
    weight = make(4, 0, wrong != "sums")[0].prepared
    assert weight is not None
    q, scale = torch.ones(2, K, dtype=torch.int8), torch.ones(2)
    zero = torch.zeros(2, dtype=torch.int32)
    if wrong == "columns":
        with pytest.raises(ValueError, match="tiles has shape"):
            weight.integer_linear(q[:, :-8].contiguous(), scale, zero, None, torch.float32)
    elif wrong == "dtype":
        with pytest.raises(ValueError, match="q is int16"):
            weight.integer_linear(q.short(), scale, zero, None, torch.float32)
    elif wrong == "scales":
        with pytest.raises(ValueError, match="x_scale"):
            weight.integer_linear(q, scale[:1], zero, None, torch.float32)
    else:
        symmetric = make(16)[0].prepared
        assert symmetric is not None
        with pytest.raises(ValueError, match="sums"):
            symmetric.integer_linear(q, scale, zero, None, torch.float32)
