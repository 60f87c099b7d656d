"""Schemes, scales and grids of NVFP4 and MXFP4, held against enumeration and compressed-tensors' own arithmetic."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dfrot.errors import InputError, UnsupportedError
from dfrot.number_formats import E2M1, E4M3
from dfrot.quant.fp4 import group_peaks, peak_exponents, round_groups, shared_scale
from dfrot.quant.rounding import gptq, rtn
from dfrot.quant.rounding.fp4_grid import Fp4Grid, Fp4Weight, fit_fp4
from dfrot.quant.rounding.hessian_error import output_errors
from dfrot.quant.rounding.options import FOUR_OVER_SIX, MAX, MSE, AlgorithmOptions
from dfrot.quant.scheme import Fp4Scheme, QuantScheme

NV, MX = (QuantScheme.parse(name) for name in ("nvfp4", "mxfp4"))
CASES = [(NV, MAX), (NV, FOUR_OVER_SIX), (NV, MSE), (MX, MAX), (MX, MSE)]
IDS = [f"{scheme.name}-{choice}" for scheme, choice in CASES]


def weights(rows: int = 48, columns: int = 128) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    spread = torch.randn(rows, 1, generator=generator).exp()
    return torch.randn(rows, columns, generator=generator) * spread


def parsed(text: str) -> Fp4Scheme:
    scheme = QuantScheme.parse(text)
    assert isinstance(scheme, Fp4Scheme)
    return scheme


@pytest.mark.parametrize("name", ["nvfp4", "nvfp4a16", "mxfp4", "mxfp4a16", "nvfp4kv4", "mxfp4a16kv8-kvsym"])
def test_names_and_records_give_the_scheme_back(name: str) -> None:
    scheme = parsed(name)
    assert scheme.name == name
    assert QuantScheme.from_dict(scheme.to_dict()) == scheme
    assert scheme.w_group == (16 if name.startswith("nv") else 32)
    assert (scheme.a_bits, scheme.a_sym) == ((16, False) if "a16" in name else (4, True))
    assert parsed(name.upper()) == scheme  # as other tools write it
    with pytest.raises(UnsupportedError, match="integer schemes only"):
        scheme.require_integers("this takes")


def test_records_of_integer_schemes_are_as_before() -> None:
    assert "fp4" not in QuantScheme().to_dict()
    QuantScheme().require_integers("this takes")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"a_clip": 0.9}, "none is clipped"),
        ({"w_group": 32}, "groups of 16"),
        ({"w_sym": False}, "without zero codes"),
        ({"w_bits": 8}, "weights of 4 bits"),
        ({"a_bits": 8}, "activations of 4 or 16 bits"),
        ({"a_sym": False}, "symmetric"),
        ({"fp4": "nvfp3"}, "nvfp3.*unknown"),
    ],
)
def test_what_the_format_does_not_have_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        replace(NV, **changes)


@pytest.mark.parametrize("text", ["nvfp4-g32", "nvfp4-asym", "nvfp8", "mxfp4a8", "nvfp4-wasym"])
def test_other_names_are_not_understood(text: str) -> None:
    with pytest.raises(UnsupportedError, match="nvfp4 or mxfp4a16"):
        QuantScheme.parse(text)


@pytest.mark.parametrize(("scheme", "choice"), CASES, ids=IDS)
def test_the_nearest_point_of_the_grid_is_chosen(scheme: Fp4Scheme, choice: str) -> None:
    """Against all 16 points of every group, enumerated in float64."""
    weight = weights()
    grid = fit_fp4(weight, scheme, choice)
    codes = grid.encode(weight)
    points = grid.steps(torch.arange(128)).double().unsqueeze(2) * E2M1.values().double()
    best = (points - weight.double().unsqueeze(2)).abs().amin(2)
    torch.testing.assert_close((grid.decode(codes).double() - weight).abs(), best, rtol=1e-5, atol=2e-6)
    assert torch.equal(grid.round(grid.round(weight)), grid.round(weight))
    stored = grid.tensors(codes)
    weight_of = Fp4Weight(*(stored.get(f"weight_{part}") for part in ("packed", "scale", "global_scale")))
    weight_of.check("name")
    assert torch.equal(weight_of.dequantize(), grid.decode(codes))
    assert torch.equal(grid.rows(3, 7).decode(codes[3:7]), grid.decode(codes)[3:7])


@pytest.mark.parametrize(("scheme", "choice"), CASES, ids=IDS)
def test_columns_round_as_the_grid_does(scheme: Fp4Scheme, choice: str) -> None:
    weight = weights()
    weight[0, 5] = -0.0
    grid = fit_fp4(weight, scheme, choice)
    order = torch.randperm(128, generator=torch.Generator().manual_seed(1))
    columns, codes = grid.columns(order), grid.encode(weight)
    for index in (0, 17, 127):
        chosen, values = columns.round(index, weight[:, order[index]])
        assert torch.equal(chosen, codes[:, order[index]])
        assert torch.equal(values, grid.decode(codes)[:, order[index]])
    assert int(codes[0, 5]) == 0


@pytest.mark.parametrize("scheme", [NV, MX], ids=lambda scheme: scheme.name)
def test_more_choices_leave_smaller_errors(scheme: Fp4Scheme) -> None:
    """Per group, mse is never worse than any scale around that of the peak."""
    weight = weights()

    def errors(grid: Fp4Grid) -> torch.Tensor:
        return (grid.round(weight) - weight).square().reshape(-1, scheme.w_group).sum(1)

    grid = fit_fp4(weight, scheme, MSE)
    least = errors(grid)
    for move in (-3, -1, 1, 4) if scheme == NV else (-1, 1):
        moved = fit_fp4(weight, scheme, MAX)
        if scheme == NV:
            moved = fit_fp4(weight, scheme, FOUR_OVER_SIX)  # the same float32 scale
        codes = (moved.scale.view(torch.uint8).int() + move).clamp(1, 126).to(torch.uint8)
        scale = codes.view(torch.float8_e4m3fn) if scheme == NV else codes
        tried = errors(replace(moved, scale=scale))
        near = (codes.int() - _peak_codes(weight, scheme, moved)).abs() <= (4 if scheme == NV else 1)
        assert bool((least <= tried * (1 + 1e-6))[near.flatten()].all())
    if scheme == NV:
        wider, plain = errors(fit_fp4(weight, scheme, FOUR_OVER_SIX)), errors(fit_fp4(weight, scheme, MAX))
        assert least.sum() < wider.sum() < plain.sum()
    else:
        assert least.sum() < errors(fit_fp4(weight, scheme, MAX)).sum()


def _peak_codes(weight: torch.Tensor, scheme: Fp4Scheme, grid: Fp4Grid) -> torch.Tensor:
    peaks = group_peaks(weight, scheme.w_group)
    if grid.shared is None:
        return peak_exponents(peaks).int()
    return E4M3.encode(grid.shared * (peaks / 6)).int()


def test_four_over_six_takes_the_scale_with_the_smaller_error() -> None:
    group = torch.tensor([[6.0, 4.5, 0.5, 3.0] * 4, [6.0, 4.0, 2.0, 0.0] * 4])
    grid = fit_fp4(group, NV, FOUR_OVER_SIX)
    assert grid.shared is not None
    # 4.5 falls between 4 and 6, but 3/4 of 6 is a point: the first row maps 6 to 4, the second keeps 6
    assert (grid.scale.float() / grid.shared).flatten().tolist() == pytest.approx([1.5, 1.0], rel=0.04)


def test_weights_that_engines_fuse_share_the_float32_scale() -> None:
    many = [weights(), 8 * weights(16), weights(32) / 4]
    alone = [rtn.quantize(weight, None, NV) for weight in many]
    together = rtn.quantize_together(many, None, NV, AlgorithmOptions())
    x = torch.randn(500, 128, generator=torch.Generator().manual_seed(2))
    solved = gptq.quantize_together(many, x.T @ x / 250, NV, AlgorithmOptions())
    for results in (together, solved):
        scales = [result.tensors()["weight_global_scale"] for result in results]
        assert all(torch.equal(scale, scales[0]) for scale in scales)
        assert torch.equal(scales[0], shared_scale(many[1].abs().max(), 256.0))
    assert len({float(result.tensors()["weight_global_scale"]) for result in alone}) == 3


@pytest.mark.parametrize("scheme", [NV, MX], ids=lambda scheme: scheme.name)
def test_gptq_lowers_the_output_error_on_scales_that_were_fixed_before(scheme: Fp4Scheme) -> None:
    weight = weights()
    x = torch.randn(600, 128, generator=torch.Generator().manual_seed(3))
    x = x @ torch.randn(128, 128, generator=torch.Generator().manual_seed(4))
    hessian = x.T @ x / 300
    for options in (AlgorithmOptions(search_scales=False), AlgorithmOptions(act_order=True, search_scales=False)):
        result = gptq.quantize(weight, hessian, scheme, options)
        nearest = fit_fp4(weight, scheme, MSE)
        assert isinstance(result.grid, Fp4Grid)
        assert torch.equal(result.grid.scale.view(torch.uint8), nearest.scale.view(torch.uint8))
        error = output_errors(weight - result.dequantize(), hessian).sum()
        assert float(error) < 0.7 * float(output_errors(weight - nearest.round(weight), hessian).sum())


@pytest.mark.parametrize("scheme", [NV, MX], ids=lambda scheme: scheme.name)
@pytest.mark.parametrize("choice", [MAX, MSE])
def test_zero_and_tiny_weights(scheme: Fp4Scheme, choice: str) -> None:
    weight = torch.zeros(4, 64)
    weight[1] = 1e-30
    weight[2, 0] = 3.0
    grid = fit_fp4(weight, scheme, choice)
    rounded = grid.round(weight)
    assert bool(rounded.isfinite().all())
    assert not bool(rounded[0].any())
    assert float(rounded[2, 0]) == pytest.approx(3.0, rel=0.07)
    assert bool(fit_fp4(torch.zeros(4, 64), scheme, choice).round(torch.zeros(4, 64)).eq(0).all())


def test_damaged_scales_are_refused() -> None:
    for scheme, part, value in ((NV, "scale", 127), (NV, "scale", 0), (NV, "scale", 200), (MX, "scale", 255)):
        weight = weights()
        grid = fit_fp4(weight, scheme, MSE)
        scale = grid.scale.clone()
        scale.view(torch.uint8)[2, 1] = value
        packed = grid.tensors(grid.encode(weight))["weight_packed"]
        with pytest.raises(InputError, match=rf"name\.weight_{part} holds"):
            Fp4Weight(packed, scale, grid.shared).check("name")
    for shared in (0.0, -1.0, torch.nan, torch.inf):
        grid = fit_fp4(weights(), NV, MSE)
        with pytest.raises(InputError, match=r"name\.weight_global_scale"):
            Fp4Weight(packed, grid.scale, torch.tensor([shared])).check("name")


def test_rounded_activations_lie_on_the_grid_and_nan_stays() -> None:
    x = torch.randn(5, 3, 64, generator=torch.Generator().manual_seed(5)) * 10
    shared = float(shared_scale(x.abs().max()))
    for name, constant in (("nvfp4", shared), ("mxfp4", None)):
        rounded = round_groups(x.bfloat16(), name, constant)
        assert rounded.shape == x.shape
        assert rounded.dtype == torch.float32
        assert torch.equal(round_groups(x.bfloat16()[:1], name, constant), rounded[:1])  # of the token alone
        assert 0.05 < float((rounded - x).norm() / x.norm()) < 0.15
        damaged = x.clone()
        damaged[0, 0, 0] = torch.nan
        assert bool(round_groups(damaged, name, constant)[0, 0, :16].isnan().any())
    # beyond the calibration's range the scale saturates, far below it a group is lost
    assert float(round_groups(torch.full((1, 16), 1e6), "nvfp4", shared).max()) == pytest.approx(
        float(x.abs().max()), rel=1e-6
    )
    assert not bool(round_groups(torch.full((1, 16), 1e-9), "nvfp4", shared).any())


@pytest.mark.parametrize(("scheme", "choice"), CASES, ids=IDS)
def test_weights_are_those_of_compressed_tensors_byte_for_byte(scheme: Fp4Scheme, choice: str) -> None:
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors.mxfp4 import MXFP4PackedCompressor
    from compressed_tensors.compressors.nvfp4 import NVFP4PackedCompressor
    from compressed_tensors.quantization import QuantizationScheme
    from compressed_tensors.quantization.quant_scheme import PRESET_SCHEMES
    from compressed_tensors.quantization.utils.helpers import calculate_qparams, generate_gparam

    preset = PRESET_SCHEMES[scheme.name.upper()]
    weight = weights()
    weight[3, 7] = -0.0
    grid = fit_fp4(weight, scheme, choice)
    state = {"weight": weight, "weight_scale": grid.steps(torch.arange(0, 128, scheme.w_group))}
    compressor = MXFP4PackedCompressor
    if grid.shared is not None:
        compressor = NVFP4PackedCompressor
        state |= {"weight_scale": grid.scale.float(), "weight_global_scale": grid.shared}
    theirs = compressor.compress(state, QuantizationScheme(targets=["Linear"], **preset))
    ours = grid.tensors(grid.encode(weight))
    assert set(theirs) == set(ours)
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype
        assert torch.equal(tensor.view(torch.uint8), theirs[name].view(torch.uint8)), name
    if choice == MAX:  # its own observer chooses the same scales
        groups = weight.reshape(len(weight), -1, scheme.w_group)
        shared = generate_gparam(weight.min(), weight.max()) if scheme == NV else None
        scales, _ = calculate_qparams(groups.amin(-1), groups.amax(-1), preset["weights"], global_scale=shared)
        assert torch.equal(scales, state["weight_scale"])


@pytest.mark.parametrize("scheme", [NV, MX], ids=lambda scheme: scheme.name)
def test_activations_are_those_of_compressed_tensors(scheme: Fp4Scheme) -> None:
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from compressed_tensors.quantization.quant_scheme import PRESET_SCHEMES
    from compressed_tensors.quantization.utils.helpers import compute_dynamic_scales_and_zp

    args = PRESET_SCHEMES[scheme.name.upper()]["input_activations"]
    generator = torch.Generator().manual_seed(6)
    x = torch.randn(64, 256, generator=generator) * torch.randn(256, generator=generator).exp()
    x[3, :64] = 0
    x[4] *= 1e-4
    shared = shared_scale(x[:32].abs().max()) if scheme == NV else None
    scale, zero = compute_dynamic_scales_and_zp(x, args, torch.nn.Module(), global_scale=shared)
    theirs = fake_quantize(x, scale, zero, args, global_scale=shared)
    assert torch.equal(theirs, round_groups(x, scheme.name, None if shared is None else float(shared)))
