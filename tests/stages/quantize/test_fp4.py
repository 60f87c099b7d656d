"""`dfq quantize` to NVFP4 and MXFP4: what is written, what runs, what resumes, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dfrot.calib.calibration import Calibration
from dfrot.checkpoint import Checkpoint
from dfrot.checkpoint_writer import SafetensorsWriter
from dfrot.errors import InputError, UnsupportedError
from dfrot.files import read_json, write_json
from dfrot.quant.fp4 import shared_scale
from dfrot.quant.modules.fp4_linear import Fp4Linear
from dfrot.quant.rounding.options import GROUP_SCALES
from dfrot.quant.scheme import QuantScheme
from dfrot.runtime.load import load_model
from dfrot.stages.calibrate.run import calibrate
from dfrot.stages.calibrate.settings import CalibrateSettings
from dfrot.stages.quantize.run import quantize
from dfrot.stages.quantize.settings import QuantizeSettings

NV, MX = QuantScheme.parse("nvfp4"), QuantScheme.parse("mxfp4")
IDS = torch.randint(3, 60, (2, 20), generator=torch.Generator().manual_seed(0))
CHANGES: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}


@pytest.fixture(scope="module")
def model(build: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("model"), online=True, **CHANGES)


@pytest.fixture(scope="module")
def cal(model: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stage") / "cal"
    calibrate(model, out, CalibrateSettings(str(text), samples=4, seqlen=24))
    return out


@torch.no_grad()
def logits(folder: Path) -> torch.Tensor:
    out: torch.Tensor = load_model(folder, torch.float32)(IDS).logits
    return out


@pytest.mark.parametrize("algorithm", ["rtn", "gptq"])
@pytest.mark.parametrize("scheme", ["nvfp4", "mxfp4", "nvfp4a16", "mxfp4a16", "nvfp4kv4"])
def test_packed_and_simulated_checkpoints_compute_the_same(
    model: Path, cal: Path, scheme: str, algorithm: str, tmp_path: Path
) -> None:
    parsed = QuantScheme.parse(scheme)
    record = quantize(model, cal, tmp_path / "packed", QuantizeSettings(parsed, algorithm))
    quantize(model, cal, tmp_path / "fake", QuantizeSettings(parsed, algorithm, fake=True))
    assert record["scheme"] == scheme
    assert record["sizes"]["bits_per_quantized_weight"] == pytest.approx(4.5 if "nv" in scheme else 4.25, rel=0.01)
    ours, exact = logits(tmp_path / "packed"), logits(model)
    assert torch.equal(ours, logits(tmp_path / "fake"))
    assert 0.005 < float((ours - exact).norm() / exact.norm()) < 0.6
    loaded = load_model(tmp_path / "packed")
    packed = [module for module in loaded.modules() if isinstance(module, Fp4Linear)]
    assert len(packed) == record["sizes"]["linears_quantized"]


def test_propagated_errors_come_from_the_arithmetic_that_runs(model: Path, cal: Path, tmp_path: Path) -> None:
    """What GPTQ assumes behind the last block is what the loaded model computes there."""
    from dfrot.stages.quantize import run

    seen: list[torch.Tensor] = []
    original = run.head_hessian

    def head_hessian(runner: Any, config: Any, source: Any, ranks: Any) -> torch.Tensor:
        seen.append(source.read(0, source.shape[0]).clone())
        return original(runner, config, source, ranks)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "head_hessian", head_hessian)
        quantize(model, cal, tmp_path / "packed", QuantizeSettings(NV, keep=()))
    from dfrot.arch import resolve
    from dfrot.inputs import open_model

    checkpoint, arch = resolve(open_model(model), to_run=True)
    tokens = Calibration.open(cal, arch, open_model(model).digest()).tokens()
    running = load_model(tmp_path / "packed", torch.float32)
    before_norm: list[torch.Tensor] = []
    running.model.norm.register_forward_pre_hook(lambda _, args: before_norm.append(args[0]))
    with torch.no_grad():
        running(tokens)
    error = float((before_norm[0] - seen[0]).norm() / seen[0].norm())
    assert error < 0.02  # the last bit of a sum now and then moves a value to a neighbouring code
    assert checkpoint.config["model_type"] == "llama"


def test_inputs_of_nvfp4_have_a_constant_scale_from_the_calibration(model: Path, cal: Path, tmp_path: Path) -> None:
    quantize(model, cal, tmp_path / "packed", QuantizeSettings(NV, "rtn"))
    entry = read_json(tmp_path / "packed/config.json")["quantization_config"]
    from dfrot.arch import resolve
    from dfrot.inputs import open_model

    _, arch = resolve(open_model(model), to_run=True)
    stats = Calibration.open(cal, arch, open_model(model).digest()).stats("layer-00001", hessians=False)
    for tap in arch.taps():
        for linear in tap.linears:
            scale = entry["a_scales"][arch.full(1, linear.name)]
            assert scale == float(shared_scale(stats[tap.name].absmax.max()))
    assert "lm_head" not in entry["a_scales"]
    quantize(model, cal, tmp_path / "mx", QuantizeSettings(MX, "rtn"))
    assert "a_scales" not in read_json(tmp_path / "mx/config.json")["quantization_config"]
    for damage, message in (
        (0.0, "no positive float32"),
        (1e300, "no positive float32"),
        (None, "a_scales lacks the input"),
    ):
        name = "model.layers.0.mlp.up_proj"
        changed = {**entry["a_scales"], name: damage}
        if damage is None:
            del changed[name]
        config = read_json(tmp_path / "packed/config.json")
        config["quantization_config"] = {**entry, "a_scales": changed}
        write_json(tmp_path / "packed/config.json", config)
        with pytest.raises(InputError, match=message):
            load_model(tmp_path / "packed")


def test_ways_to_choose_scales_differ_and_are_recorded(model: Path, tmp_path: Path) -> None:
    scheme, errors = QuantScheme.parse("nvfp4a16"), []
    for choice in GROUP_SCALES:
        record = quantize(model, None, tmp_path / choice, QuantizeSettings(scheme, "rtn", group_scales=choice))
        assert record["request"]["settings"]["group_scales"] == choice
        errors.append(record["linears"]["model.layers.0.mlp.up_proj"]["weight_error"])
    assert errors[0] > errors[1] > errors[2]
    default = quantize(model, None, tmp_path / "default", QuantizeSettings(scheme, "rtn"))
    assert default["request"]["settings"]["group_scales"] == "mse"
    integers = quantize(model, None, tmp_path / "int", QuantizeSettings(QuantScheme.parse("w4a16"), "rtn"))
    assert "group_scales" not in integers["request"]["settings"]
    assert "fp4" not in integers["request"]["settings"]["scheme"]


def test_fused_linears_share_their_scale(model: Path, cal: Path, tmp_path: Path) -> None:
    quantize(model, cal, tmp_path / "packed", QuantizeSettings(NV))
    checkpoint = Checkpoint.open(tmp_path / "packed")

    def scale(name: str) -> float:
        return float(checkpoint.read(f"model.layers.1.{name}_proj.weight_global_scale"))

    assert len({scale(f"self_attn.{name}") for name in "qkv"}) == 1
    assert scale("mlp.gate") == scale("mlp.up") != scale("mlp.down")


def test_an_interrupted_run_ends_in_the_same_bytes(
    model: Path, cal: Path, same_bytes_after: Callable[..., None]
) -> None:
    write = SafetensorsWriter.write

    def failing(self: SafetensorsWriter, name: str, tensor: torch.Tensor) -> None:
        if name == "model.layers.1.mlp.up_proj.weight_scale":
            raise KeyboardInterrupt
        write(self, name, tensor)

    same_bytes_after(lambda out: quantize(model, cal, out, QuantizeSettings(NV)), SafetensorsWriter, "write", failing)


def test_tables_of_integers_stand_beside_fp4(model: Path, tmp_path: Path) -> None:
    from dfrot.quant.table import TableScheme

    settings = QuantizeSettings(
        QuantScheme.parse("nvfp4a16"), "rtn", embed=TableScheme.parse("8"), head=TableScheme.parse("4")
    )
    quantize(model, None, tmp_path / "packed", settings)
    checkpoint = Checkpoint.open(tmp_path / "packed")
    assert checkpoint.read("lm_head.weight_scale").dtype == torch.bfloat16
    assert checkpoint.read("model.layers.0.mlp.up_proj.weight_scale").dtype == torch.float8_e4m3fn
    exact = logits(model)
    assert float((logits(tmp_path / "packed") - exact).norm() / exact.norm()) < 0.6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scheme": NV, "mse_clip": False}, "`mse_clip` is for integers"),
        ({"scheme": NV, "signed_scales": False}, "`signed_scales` is for integers"),
        ({"scheme": NV, "a_clip": 0.9}, "leave `a_clip` out"),
        ({"scheme": NV, "a_clip": "auto"}, "leave `a_clip` out"),
        ({"scheme": MX, "group_scales": "four-over-six"}, "`group_scales=mse`"),
        ({"scheme": QuantScheme(), "group_scales": "max"}, "integers have `mse_clip`"),
        ({"scheme": NV, "budget": 6.0}, "`budget` raises inputs to integers"),
        ({"scheme": NV, "effort": "quick"}, "scheme nvfp4 needs"),
    ],
)
def test_settings_without_meaning_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        QuantizeSettings(**settings)


def test_runs_that_cannot_be_are_refused(model: Path, text: Path, build: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="scheme nvfp4 needs a `calibration`"):
        quantize(model, None, tmp_path / "out", QuantizeSettings(NV, "rtn"))
    calibrate(model, tmp_path / "tokens", CalibrateSettings(str(text), samples=2, seqlen=24, statistics=False))
    with pytest.raises(InputError, match="calibrate with `statistics`, or use nvfp4a16"):
        quantize(model, tmp_path / "tokens", tmp_path / "out", QuantizeSettings(NV, "rtn"))
    with pytest.raises(UnsupportedError, match="keeps keys in 16 bits"):
        quantize(model, tmp_path / "tokens", tmp_path / "out", QuantizeSettings(MX, "rtn", key_shift="mean"))
    narrow = build(tmp_path / "narrow", **{**CHANGES, "intermediate_size": 136})
    with pytest.raises(UnsupportedError, match=r"down_proj has 136 inputs.*no groups of 16.*`keep=down_proj`"):
        quantize(narrow, None, tmp_path / "out", QuantizeSettings(QuantScheme.parse("nvfp4a16"), "rtn"))
    kept = QuantizeSettings(QuantScheme.parse("nvfp4a16"), "rtn", keep=("lm_head", "down_proj"))
    quantize(narrow, None, tmp_path / "kept", kept)
    packed = tmp_path / "again"
    quantize(model, None, packed, QuantizeSettings(QuantScheme.parse("mxfp4a16"), "rtn"))
    with pytest.raises(UnsupportedError, match="quantized already"):
        quantize(packed, None, tmp_path / "out", QuantizeSettings(MX, "rtn"))


def test_commands_for_integers_refuse_fp4(model: Path, tmp_path: Path) -> None:
    from dfrot.bench.models.random_model import random_checkpoint
    from dfrot.outliers.measure.subject import Subject
    from dfrot.stages.compare.settings import CompareSettings
    from dfrot.stages.sensitivity.settings import SensitivitySettings

    quantize(model, None, tmp_path / "packed", QuantizeSettings(QuantScheme.parse("nvfp4a16"), "rtn"))
    config = read_json(model / "config.json")
    refused: list[Callable[[], Any]] = [
        lambda: SensitivitySettings(NV),
        lambda: CompareSettings(schemes=("nvfp4",)),
        lambda: random_checkpoint(tmp_path / "random", config, "mxfp4"),
        lambda: Subject(tmp_path / "packed"),
    ]
    for call in refused:
        with pytest.raises(UnsupportedError, match="integer schemes only"):
            call()


@torch.no_grad()
def test_adapters_run_beside_fp4(model: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    quantize(model, None, tmp_path / "packed", QuantizeSettings(QuantScheme.parse("mxfp4"), "rtn"))
    running = load_model(tmp_path / "packed", torch.float32)
    before = running(IDS).logits
    adapted = peft.get_peft_model(running, peft.LoraConfig(r=2, target_modules=["v_proj"], task_type="CAUSAL_LM"))
    assert torch.equal(adapted.eval()(IDS).logits, before)  # adapters begin at zero
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.fill_(0.1)
    assert not torch.allclose(adapted(IDS).logits, before, atol=1e-3)
