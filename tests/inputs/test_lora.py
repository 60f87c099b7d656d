"""`dfq import --merge-adapter`: the merged folder holds what peft's own merge makes; what is more is refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from dfrot.checkpoint import Checkpoint
from dfrot.errors import DfqError, InputError, UnsupportedError
from dfrot.inputs import open_model
from dfrot.stages.imports.run import import_model, plan
from dfrot.stages.imports.settings import ImportSettings
from dfrot_cli.main import main

peft = pytest.importorskip("peft")
TARGETS = ["q_proj", "v_proj", "down_proj"]


def adapter_of(base: Path, folder: Path, **options: Any) -> dict[str, torch.Tensor]:
    """Save a random adapter of `base`; returns the weights that peft merges, float32, by name."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = peft.get_peft_model(model, peft.LoraConfig(**{"r": 4, "target_modules": TARGETS, **options}))
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    model.save_pretrained(folder)
    return dict(model.merge_and_unload().state_dict())


@pytest.fixture
def base(kit: SimpleNamespace, tmp_path: Path) -> Path:
    folder: Path = kit.write_folder(tmp_path / "base", kit.dense_tensors(dtype=torch.float32), None, dtype="float32")
    return folder


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lora_alpha": 3, "use_rslora": True},
        {"alpha_pattern": {"layers.1.self_attn.v_proj": 40, "down_proj": 2}, "rank_pattern": {"q_proj": 7}},
        {"modules_to_save": ["lm_head"]},
    ],
)
def test_weights_are_those_that_peft_merges(base: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    expected = adapter_of(base, tmp_path / "adapter", **options)
    record = import_model(base, tmp_path / "out", merge_adapter=tmp_path / "adapter")
    written, source = Checkpoint.open(tmp_path / "out"), Checkpoint.open(base)
    assert set(written.entries) == set(source.entries) == set(expected)
    changed = set()
    for name in written.entries:
        torch.testing.assert_close(written.read(name), expected[name], rtol=1e-5, atol=1e-6)
        if not torch.equal(written.read(name), source.read(name)):
            changed.add(name.removesuffix(".weight").rpartition(".")[2])
    assert changed == {*TARGETS, *options.get("modules_to_save", ())}
    assert record["source"]["format"] == "16-bit checkpoint, with a LoRA adapter on 6 linears"
    assert set(record["adapter"]) == {"adapter_config.json", "adapter_model.safetensors"}
    assert set(record["source"]["files"]) == {"model.safetensors"}


def test_sums_are_rounded_once_to_the_dtype_of_the_weight(kit: SimpleNamespace, base: Path, tmp_path: Path) -> None:
    expected = adapter_of(base, tmp_path / "adapter")
    import_model(base, tmp_path / "out", ImportSettings(dtype="bf16"), merge_adapter=tmp_path / "adapter")
    name = "model.layers.1.self_attn.v_proj.weight"
    rounded = Checkpoint.open(base).read(name).bfloat16().float()  # the base is in bfloat16 before
    update = expected[name] - Checkpoint.open(base).read(name)
    written = Checkpoint.open(tmp_path / "out").read(name)
    assert written.dtype == torch.bfloat16
    assert float((written.float() - (rounded + update).bfloat16().float()).abs().max()) < 1e-2
    assert float((written != (rounded + update).bfloat16()).float().mean()) < 0.01


def test_a_quantized_base_is_dequantized_first(
    kit: SimpleNamespace, base: Path, fp8_model: Path, tmp_path: Path
) -> None:
    update = adapter_of(base, tmp_path / "adapter")
    import_model(fp8_model, tmp_path / "out", ImportSettings(dtype="f32"), merge_adapter=tmp_path / "adapter")
    name = "model.layers.0.mlp.down_proj.weight"
    wanted = open_model(fp8_model, torch.float32).read(name) + update[name] - Checkpoint.open(base).read(name)
    torch.testing.assert_close(Checkpoint.open(tmp_path / "out").read(name), wanted, rtol=1e-4, atol=1e-5)


def test_another_adapter_is_another_request(base: Path, tmp_path: Path) -> None:
    adapter_of(base, tmp_path / "a")
    adapter_of(base, tmp_path / "b", r=5)
    import_model(base, tmp_path / "out", merge_adapter=tmp_path / "a")
    before = (tmp_path / "out/model.safetensors").read_bytes()
    import_model(base, tmp_path / "out", merge_adapter=tmp_path / "b", overwrite=True)
    assert (tmp_path / "out/model.safetensors").read_bytes() != before
    assert plan(base, ImportSettings(), tmp_path / "a")["format"].endswith("LoRA adapter on 6 linears")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3'"),
        ({"peft_type": ["LORA"]}, "peft_type"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias 'all'"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa'"),
        ({"init_lora_weights": {}}, "init_lora_weights"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"lora_alpha": "many"}, "lora_alpha"),
        ({"lora_alpha": True}, "lora_alpha"),
        ({"lora_alpha": 1e300}, "lora_alpha"),
        ({"alpha_pattern": {"(a+)+$": 2}}, "alpha_pattern"),
        ({"alpha_pattern": [1]}, "alpha_pattern"),
    ],
)
def test_more_than_plain_lora_is_refused(base: Path, tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    adapter_of(base, tmp_path / "adapter")
    file = tmp_path / "adapter/adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(DfqError) as caught:
        import_model(base, tmp_path / "out", merge_adapter=tmp_path / "adapter")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_damaged_adapters_and_those_of_another_model_are_refused(base: Path, tmp_path: Path) -> None:
    adapter_of(base, tmp_path / "adapter")
    file = tmp_path / "adapter/adapter_model.safetensors"
    good = load_file(file)
    a = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    b = a.replace("lora_A", "lora_B")
    without = {name: tensor for name, tensor in good.items() if name not in (a, b)}
    cases: list[dict[str, torch.Tensor]] = [
        {**without, a: good[a]},
        {**good, a: good[a][:3]},
        {**good, a: good[a][0]},
        {**good, a: good[a][:, :-1]},
        {**good, a: good[a].int()},
        {**good, "model.x.lora_A.weight": good[a]},
        {**good, a.replace("lora_A", "lora_magnitude_vector"): good[a]},
        {**good, "base_model.model.model.layers.0.self_attn.q_proj.bias": torch.zeros(128)},
        {**without, a.replace("layers.0", "layers.7"): good[a], b.replace("layers.0", "layers.7"): good[b]},
        {**good, "base_model.model.lm_head.weight": torch.zeros(3, 128)},
        {**good, a: good[a] * torch.nan},
    ]
    for tensors in cases:
        save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, file)
        with pytest.raises(InputError) as caught:
            import_model(base, tmp_path / "out", merge_adapter=tmp_path / "adapter")
        assert "adapter_model.safetensors: " in str(caught.value)
    file.unlink()
    with pytest.raises(InputError, match=r"no adapter_model\.safetensors"):
        import_model(base, tmp_path / "out", merge_adapter=tmp_path / "adapter")
    with pytest.raises(InputError, match=r"no adapter_config\.json"):
        import_model(base, tmp_path / "out", merge_adapter=base)


def test_command_and_the_remedy_that_an_adapter_folder_names(base: Path, tmp_path: Path) -> None:
    adapter_of(base, tmp_path / "adapter")
    with pytest.raises(UnsupportedError, match="--merge-adapter"):
        open_model(tmp_path / "adapter")
    arguments = ["import", str(base), "--merge-adapter", str(tmp_path / "adapter"), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(main, [*arguments, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["source"]["format"].endswith("6 linears")
    refused = CliRunner().invoke(main, ["import", str(base), "--out", str(tmp_path / "x")])
    assert refused.exit_code == 2
    assert "--merge-adapter" in refused.stderr
