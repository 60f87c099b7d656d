from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dfrot.arch import open_described
from dfrot.calib.calibration import Calibration
from dfrot.calib.simulate import SimulatedKV
from dfrot.checkpoint import Checkpoint, read_header
from dfrot.errors import InputError, MismatchError, UnsupportedError
from dfrot.files import read_json, write_json
from dfrot.quant.activations import fake_quantize
from dfrot.quant.config import DfqConfig
from dfrot.quant.rounding import gptq, rtn
from dfrot.quant.rounding.options import AlgorithmOptions
from dfrot.quant.scheme import QuantScheme
from dfrot.runtime.block_runner import BlockRunner
from dfrot.stages.calibrate.run import calibrate
from dfrot.stages.calibrate.settings import CalibrateSettings
from dfrot.stages.quantize.run import quantize
from dfrot.stages.quantize.settings import QuantizeSettings
from dfrot_kernels.layouts import PackedWeight

Build = Callable[..., Path]
Q = "model.layers.1.self_attn.q_proj"
DOWN = "model.layers.1.mlp.down_proj"


def settings(scheme: str = "w4a4kv4", **changes: Any) -> QuantizeSettings:
    """No clipping of activations and no sink tokens, the defaults of 4-bit activations, unless asked for."""
    return QuantizeSettings(QuantScheme.parse(scheme), **{"a_clip": 1.0, "sink_tokens": 0, **changes})


def packed(folder: Path, name: str) -> PackedWeight:
    checkpoint = Checkpoint.open(folder)
    config = DfqConfig.of(checkpoint.config)
    assert config is not None
    assert config.scheme is not None
    source = checkpoint.read(f"{name}.weight_packed")
    zero = checkpoint.read(f"{name}.weight_zero") if f"{name}.weight_zero" in checkpoint else None
    scheme = config.scheme
    k = {"q_proj": 32, "down_proj": 48, "lm_head": 32}[name.rsplit(".", 1)[-1]]
    scale = checkpoint.read(f"{name}.weight_scale")
    return PackedWeight(source, scale, zero, scheme.w_bits, scheme.w_group, (len(source), k))


def logits(folder: Path, tokens: Tensor) -> Tensor:
    from dfrot.runtime.load import load_model

    with torch.no_grad():
        return load_model(folder, "float32")(tokens).logits  # type: ignore[no-any-return]


def test_rounding_needs_no_calibration_and_equals_the_function(model: Path, tmp_path: Path) -> None:
    for scheme in ("w4a4kv4", "w3a8kv4-g16-wasym"):
        out = tmp_path / scheme
        record = quantize(model, None, out, settings(scheme, algorithm="rtn"))
        weight = Checkpoint.open(model).read(f"{DOWN}.weight").float()
        expected = rtn.quantize(weight, None, QuantScheme.parse(scheme))
        stored = packed(out, DOWN)
        assert torch.equal(stored.codes(), expected.codes)
        assert torch.equal(stored.dequantize(torch.float32), expected.dequantize())
        assert record["linears"][DOWN] == expected.stats


def test_dense_tensors_config_and_tokenizer_are_carried_over(model: Path, cal: Path, tmp_path: Path) -> None:
    record = quantize(model, cal, tmp_path / "q", settings(sink_tokens=2))
    source, result = Checkpoint.open(model), Checkpoint.open(tmp_path / "q")
    for name in ("model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"):
        assert torch.equal(source.read(name), result.read(name))
    assert f"{Q}.weight" not in result
    assert (tmp_path / "q" / "tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()
    config, before = DfqConfig.of(result.config), DfqConfig.of(source.config)
    assert config is not None
    assert before is not None
    assert (config.scheme, config.keep, config.sink_tokens) == (QuantScheme(), ("lm_head",), 2)
    assert config.online == before.online
    assert not list((tmp_path / "q").glob("hidden*"))
    sizes = record["sizes"]
    assert sizes["bytes"] == sum(e.end - e.start for e in result.entries.values())
    assert sizes["linears_quantized"] == 21
    assert 4 < sizes["bits_per_quantized_weight"] < 5  # tiny rows: half a bit for the scale
    assert set(record["linears"]) == {name for name in record["linears"] if "layers" in name}


@pytest.mark.parametrize("scheme", ["w4a16", "w4a16-g8", "w3a16"])
def test_blocks_use_all_levels_and_scales_that_fit(model: Path, cal: Path, tmp_path: Path, scheme: str) -> None:
    """Each lowers the output error of the weights, and both can be left out."""
    errors = []
    for number, (signed, fitted) in enumerate([(False, False), (True, False), (True, True)]):
        out = tmp_path / str(number)
        how = settings(scheme, signed_scales=signed, fit_scales=fitted, propagate=False)
        record = quantize(model, cal, out, how)
        errors.append(sum(linear["output_error"] for linear in record["linears"].values()))
        assert bool((packed(out, DOWN).scale < 0).any()) == signed
    assert errors[0] > errors[1]
    assert errors[1] > errors[2] if "-g" in scheme else errors[1] == errors[2]


@pytest.mark.parametrize("sinks", [0, 3])
def test_propagation_collects_what_the_quantized_model_feeds(
    model: Path, cal: Path, tmp_path: Path, sinks: int
) -> None:
    """An independent walk: plain forward passes per tap, with rounding written out, give the same integers."""
    scheme = QuantScheme.parse("w4a4kv4")
    quantize(model, cal, tmp_path / "q", settings(sink_tokens=sinks, compensate=0.0))
    checkpoint, arch = open_described(model)
    runner = BlockRunner(checkpoint, arch)
    assert runner.online is not None
    tokens = Calibration.open(cal, arch, checkpoint.digest()).tokens()
    hidden = runner.embed(tokens)

    def rounded(x: Tensor) -> Tensor:
        out = fake_quantize(x, 4, False)
        return torch.cat([x[:, :sinks], out[:, sinks:]], 1)

    differing = total = 0
    result_tensors = Checkpoint.open(tmp_path / "q")
    for layer in range(arch.n_layers):
        shift = result_tensors.read(f"{arch.attention(layer)}.key_shift")
        cache = SimulatedKV.of(scheme, runner.online.r3, sinks, shift)
        block = runner.block(layer)
        modules: dict[str, nn.Linear] = {}
        for linear in arch.spec.linears:
            module = block.get_submodule(linear.name)
            modules[linear.name] = getattr(module, "linear", module)
            modules[linear.name].register_forward_pre_hook(lambda _, args: (rounded(args[0]),))
        for tap in arch.taps():
            inputs: list[Tensor] = []
            handle = modules[tap.name].register_forward_pre_hook(lambda _, args, inputs=inputs: inputs.append(args[0]))
            runner.run(block, hidden, cache)
            handle.remove()
            x = inputs[0].reshape(-1, inputs[0].shape[-1])
            for linear in tap.linears:
                result = gptq.quantize(modules[linear.name].weight.data, 2 / len(x) * x.T @ x, scheme)
                modules[linear.name].weight.data = result.dequantize()
                name = arch.full(layer, linear.name)
                if name in (Q, DOWN):
                    codes = packed(tmp_path / "q", name).codes()
                    differing, total = differing + int((codes != result.codes).sum()), total + codes.numel()
        hidden = runner.run(block, hidden, cache)
    assert total > 0
    assert differing <= 0.01 * total  # float32 sums in another order may flip a value between two codes


@pytest.mark.parametrize("compensate", [0.0, 0.5])
def test_chunked_propagation_agrees(
    model: Path, cal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compensate: float
) -> None:
    quantize(model, cal, tmp_path / "whole", settings(compensate=compensate, keep=("lm_head", "model.layers.0.*")))
    monkeypatch.setattr("dfrot.calib.taps.CHUNK_BYTES", 1)
    quantize(model, cal, tmp_path / "chunked", settings(compensate=compensate, keep=("lm_head", "model.layers.0.*")))
    for name in (Q, DOWN):
        a, b = (packed(tmp_path / folder, name).codes().int() for folder in ("whole", "chunked"))
        assert float((a != b).float().mean()) < 0.02


def test_half_of_the_input_error_is_compensated_where_it_propagates() -> None:
    assert settings().compensation == 0.5
    assert settings(compensate=0.0).compensation == 0.0
    assert settings("w4a16").compensation == 0.5
    assert settings("w16a4kv4").compensation == 0.0
    assert settings(propagate=False).compensation == 0.0
    assert settings(algorithm="rtn").compensation == 0.0


def test_without_propagation_the_calibration_is_used(model: Path, cal: Path, tmp_path: Path) -> None:
    quantize(model, cal, tmp_path / "q", settings(propagate=False, act_order=True, damping=0.05))
    checkpoint, arch = open_described(model)
    stats = Calibration.open(cal, arch, checkpoint.digest()).stats("layer-00001")
    weight = checkpoint.read(f"{DOWN}.weight").float()
    options = AlgorithmOptions(act_order=True, damping=0.05)
    expected = gptq.quantize(weight, stats["mlp.down_proj"].hessian, QuantScheme(), options)
    assert torch.equal(packed(tmp_path / "q", DOWN).codes(), expected.codes)


def test_gptq_with_propagation_beats_rounding_on_logits(model: Path, text: Path, tmp_path: Path) -> None:
    """On text that was not calibrated on."""
    cal = tmp_path / "cal"
    calibrate(model, cal, CalibrateSettings(str(text), samples=32, seqlen=48))
    calibrate(model, tmp_path / "other", CalibrateSettings(str(text), samples=8, seqlen=48, seed=1))
    tokens = Checkpoint(tmp_path, {}, read_header(tmp_path / "other" / "tokens.safetensors")).read("tokens")
    exact = logits(model, tokens)
    errors = {}
    for algorithm in ("gptq", "rtn"):
        quantize(model, cal, tmp_path / algorithm, settings("w3a16", algorithm=algorithm))
        errors[algorithm] = float((logits(tmp_path / algorithm, tokens) - exact).square().mean())
    assert errors["gptq"] < errors["rtn"]


def test_compensation_brings_the_outputs_closer(model: Path, text: Path, tmp_path: Path) -> None:
    """To those of the unquantized model, on the calibration's own text; chunks give the same weights."""
    cal = tmp_path / "cal"
    calibrate(model, cal, CalibrateSettings(str(text), samples=32, seqlen=48))
    tokens = Checkpoint(tmp_path, {}, read_header(cal / "tokens.safetensors")).read("tokens")
    exact, errors = logits(model, tokens), {}
    for strength in (0.0, 1.0):
        out = tmp_path / f"q{strength}"
        quantize(model, cal, out, settings("w4a3kv4", compensate=strength))
        errors[strength] = float((logits(out, tokens) - exact).square().mean())
        assert not list(out.glob("hidden*"))
    assert errors[1.0] < 0.95 * errors[0.0]
    with pytest.raises(InputError, match="`compensate` 2"):
        settings(compensate=2.0)
    with pytest.raises(UnsupportedError, match="propagat"):
        settings(compensate=0.5, propagate=False)


@pytest.mark.parametrize("scheme", ["w4a4kv4", "w3a16-g16-wasym", "w8a8kv8"])
def test_packed_weights_equal_the_simulated_ones_bit_for_bit(
    model: Path, cal: Path, tmp_path: Path, scheme: str
) -> None:
    quantize(model, cal, tmp_path / "packed", settings(scheme))
    quantize(model, cal, tmp_path / "fake", settings(scheme, fake=True))
    fake = Checkpoint.open(tmp_path / "fake")
    config = DfqConfig.of(fake.config)
    assert config is not None
    assert config.fake
    for name in (Q, DOWN):
        dense = fake.read(f"{name}.weight")
        assert dense.dtype == torch.float32
        assert torch.equal(packed(tmp_path / "packed", name).dequantize(torch.float32), dense)


def test_sixteen_bit_weights_stay_as_they_are(model: Path, tmp_path: Path) -> None:
    record = quantize(model, None, tmp_path / "q", settings("w16a4kv4"))
    source, result = Checkpoint.open(model), Checkpoint.open(tmp_path / "q")
    assert set(source.entries) == set(result.entries)
    assert all(torch.equal(source.read(name), result.read(name)) for name in source.entries)
    assert record["linears"] == {}
    tokens = torch.arange(20)[None]
    assert not torch.equal(logits(model, tokens), logits(tmp_path / "q", tokens))


def test_kept_linears(model: Path, cal: Path, tmp_path: Path) -> None:
    keep = ("lm_head", "down_proj", "model.layers.0.*", "*.1.self_attn.k_proj")
    record = quantize(model, cal, tmp_path / "q", settings(keep=keep))
    result, source = Checkpoint.open(tmp_path / "q"), Checkpoint.open(model)
    kept = [name for name in source.entries if name in result and "proj" in name]
    assert len(kept) == 7 + 2 + 1
    assert all(torch.equal(source.read(name), result.read(name)) for name in kept)
    assert len(record["linears"]) == 11
    assert f"{Q}.weight_packed" in result
    logits(tmp_path / "q", torch.arange(20)[None])  # loads and runs
    for pattern, nearest in (("lm_haed", "lm_head"), ("mlp.dwn_proj", "mlp.down_proj")):
        with pytest.raises(InputError, match=f"`keep` {pattern}: matches no linear .*nearest: {nearest}"):
            quantize(model, cal, tmp_path / "other", settings(keep=(pattern,)))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("algorithm", ["rtn", "gptq"])
def test_the_head_can_be_quantized(build: Build, text: Path, tmp_path: Path, tied: bool, algorithm: str) -> None:
    model = build(tmp_path / "model", tie_word_embeddings=tied)
    calibrate(model, tmp_path / "cal", CalibrateSettings(str(text), 2, 16))
    record = quantize(model, tmp_path / "cal", tmp_path / "q", settings(keep=(), algorithm=algorithm))
    assert record["linears"]["lm_head"]["algorithm"] == algorithm
    config = read_json(tmp_path / "q" / "config.json")
    assert config["tie_word_embeddings"] is False
    tokens = torch.arange(16)[None]
    assert float((logits(tmp_path / "q", tokens).argmax(-1) == logits(model, tokens).argmax(-1)).float().mean()) > 0.3


@pytest.mark.parametrize("kind", ["mistral", "qwen2", "qwen3"])
def test_other_architectures(build: Build, text: Path, tmp_path: Path, kind: str) -> None:
    extra = {"head_dim": 16} if kind != "qwen2" else {}
    model = build(tmp_path / "model", kind, online=True, **extra)
    calibrate(model, tmp_path / "cal", CalibrateSettings(str(text), 2, 16))
    record = quantize(model, tmp_path / "cal", tmp_path / "q", settings("w8a8kv8"))
    assert {stats["algorithm"] for stats in record["linears"].values()} == {"gptq"}
    tokens = torch.arange(16)[None]
    exact = logits(model, tokens)
    assert float((logits(tmp_path / "q", tokens) - exact).norm() / exact.norm()) < 0.1


def test_activation_clips(model: Path, cal: Path, tmp_path: Path) -> None:
    quantize(model, cal, tmp_path / "auto", settings("w4a3kv4-sym", a_clip="auto"))
    config = DfqConfig.of(Checkpoint.open(tmp_path / "auto").config)
    assert config is not None
    checkpoint, arch = open_described(model)
    stats = Calibration.open(cal, arch, checkpoint.digest()).stats("layer-00001")
    assert config.a_clips[Q] == stats["self_attn.q_proj"].best_clip(3, True) < 1
    assert config.a_clips[Q] == config.a_clips[Q.replace("q_proj", "v_proj")]
    assert "lm_head" not in config.a_clips
    quantize(model, cal, tmp_path / "fixed", settings(a_clip=0.9))
    config = DfqConfig.of(Checkpoint.open(tmp_path / "fixed").config)
    assert config is not None
    assert config.scheme == replace(QuantScheme(), a_clip=0.9)
    assert config.a_clips == {}
    with pytest.raises(InputError, match="dfq calibrate"):
        quantize(model, None, tmp_path / "x", settings(algorithm="rtn", a_clip="auto"))


def test_calibration_of_another_checkpoint_is_refused(model: Path, cal: Path, build: Build, tmp_path: Path) -> None:
    other = build(tmp_path / "other", seed=7, online=True)
    with pytest.raises(MismatchError, match="another checkpoint"):
        quantize(other, cal, tmp_path / "out" / "q", settings())
    quantize(model, cal, tmp_path / "out" / "q", settings(algorithm="rtn"))
    with pytest.raises(MismatchError, match="not of dfq calibrate"):
        quantize(model, tmp_path / "out" / "q", tmp_path / "out" / "q2", settings())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["q"]


@pytest.mark.parametrize("name", ["layer-00001.safetensors", "head.safetensors", "tokens.safetensors", "stage.json"])
def test_truncated_calibrations_are_refused(model: Path, cal: Path, tmp_path: Path, name: str) -> None:
    import shutil

    broken = tmp_path / "cal"
    shutil.copytree(cal, broken)
    raw = (broken / name).read_bytes()
    (broken / name).write_bytes(raw[: len(raw) // 2])
    with pytest.raises(InputError, match=name):
        quantize(model, broken, tmp_path / "out" / "q", settings())
    (broken / name).unlink()
    with pytest.raises(InputError, match=name):
        quantize(model, broken, tmp_path / "out" / "q", settings())
    assert not (tmp_path / "out").exists()


def test_exchanged_tokens_are_refused(model: Path, cal: Path, tmp_path: Path) -> None:
    import shutil

    broken = tmp_path / "cal"
    shutil.copytree(cal, broken)
    raw = bytearray((broken / "tokens.safetensors").read_bytes())
    raw[-8] ^= 1
    (broken / "tokens.safetensors").write_bytes(raw)
    with pytest.raises(InputError, match=r"does not match stage\.json"):
        quantize(model, broken, tmp_path / "q", settings())


def test_damaged_weights_are_named_and_nothing_is_published(
    build: Build, rewrite: Callable[..., None], tmp_path: Path
) -> None:
    model = build(tmp_path / "model")
    rewrite(model, model__layers__2__mlp__up_proj__weight=torch.full((48, 32), float("nan"), dtype=torch.bfloat16))
    with pytest.raises(InputError, match=r"model.layers.2.mlp.up_proj.weight: holds NaN"):
        quantize(model, None, tmp_path / "q", settings(algorithm="rtn"))
    assert not (tmp_path / "q").exists()


def test_refusals_before_work(model: Path, cal: Path, build: Build, tmp_path: Path) -> None:
    out = tmp_path / "out" / "q"
    with pytest.raises(InputError, match="needs a `calibration`"):
        quantize(model, None, out, settings())
    with pytest.raises(InputError, match="`algorithm` 'awq': choose one of gptq, rtn"):
        settings(algorithm="awq")
    with pytest.raises(InputError, match="`sink_tokens` -1"):
        settings(sink_tokens=-1)
    with pytest.raises(InputError, match="`a_clip` 'best'"):
        settings(a_clip="best")
    with pytest.raises(UnsupportedError, match="clip ratio"):
        quantize(model, cal, out, settings(a_clip=1.5))
    odd = build(tmp_path / "odd", head_dim=6)
    with pytest.raises(UnsupportedError, match="whole bytes"):
        quantize(odd, None, out, settings("w4a4kv3", algorithm="rtn"))
    with pytest.raises(InputError, match="no such folder"):
        quantize(model, tmp_path / "nowhere", out, settings())
    foreign = read_json(model / "config.json")
    done = tmp_path / "done"
    quantize(model, None, done, settings(algorithm="rtn"))
    with pytest.raises(UnsupportedError, match="quantized already"):
        quantize(done, None, out, settings(algorithm="rtn"))
    foreign["quantization_config"] = {"quant_method": "quip"}
    write_json(odd / "config.json", foreign)
    with pytest.raises(UnsupportedError, match="'quip'"):
        quantize(odd, None, out, settings(algorithm="rtn"))
    assert not (tmp_path / "out").exists()


def test_no_hessians_and_no_propagation_is_refused(model: Path, text: Path, tmp_path: Path) -> None:
    calibrate(model, tmp_path / "cal", CalibrateSettings(str(text), 2, 16, hessians=False))
    quantize(model, tmp_path / "cal", tmp_path / "propagated", settings())
    with pytest.raises(InputError, match="holds no Hessians"):
        quantize(model, tmp_path / "cal", tmp_path / "q", settings(propagate=False))
    assert not (tmp_path / "q").exists()


def test_unusable_hessians_fall_back_and_are_reported(
    model: Path, cal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        gptq,
        "factor",
        lambda hessian, options, group: "no damping helps" if len(hessian) == 48 else _factor(hessian, options, group),
    )
    record = quantize(model, cal, tmp_path / "q", settings())
    assert record["fallbacks"] == {f"model.layers.{i}.mlp.down_proj": "no damping helps" for i in range(3)}
    assert record["linears"][DOWN]["algorithm"] == "rtn"
    assert record["linears"][Q]["algorithm"] == "gptq"


_factor = gptq.factor
