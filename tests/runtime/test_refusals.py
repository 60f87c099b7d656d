"""Damaged and foreign folders: one line that names file and tensor, before any weight is used."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dfrot.checkpoint import Checkpoint
from dfrot.errors import DfqError, InputError, UnsupportedError
from dfrot.files import read_json, write_json
from dfrot.quant.config import DfqConfig
from dfrot.quant.scheme import QuantScheme
from dfrot.runtime.load import load, load_model

UP = "model.layers.1.mlp.up_proj"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, kit: SimpleNamespace) -> Path:
    root = tmp_path_factory.mktemp("refusals")
    scheme = QuantScheme.parse("w4a4kv4-wasym")
    return kit.pack(kit.build(root / "source"), root / "packed", DfqConfig(scheme, sink_tokens=1))


def changed(folder: Path, out: Path, kit: SimpleNamespace, edit: Any) -> Path:
    checkpoint = Checkpoint.open(folder)
    tensors = {name: checkpoint.read(name) for name in checkpoint.entries}
    edit(tensors)
    return kit.write(out, checkpoint.config, tensors)


def drop(name: str) -> Any:
    return lambda tensors: tensors.pop(name)


def put(name: str, value: Any) -> Any:
    def edit(tensors: dict[str, Tensor]) -> None:
        tensors[name] = value(tensors.get(name))

    return edit


EDITS = {
    "missing codes": (drop(f"{UP}.weight_packed"), f"{UP}.weight_packed"),
    "missing scale": (drop(f"{UP}.weight_scale"), f"{UP}.weight_scale"),
    "missing zero": (drop(f"{UP}.weight_zero"), f"{UP}.weight_zero"),
    "missing norm": (drop("model.norm.weight"), "model.norm.weight"),
    "short rows": (put(f"{UP}.weight_packed", lambda t: t[:, :-1].contiguous()), f"{UP}.weight_packed.*shape"),
    "float scale": (put(f"{UP}.weight_scale", lambda t: t.float()), f"{UP}.weight_scale.*dtype"),
    "signed codes": (put(f"{UP}.weight_packed", lambda t: t.to(torch.int8)), f"{UP}.weight_packed.*dtype"),
    "stray tensor": (put("model.extra.weight", lambda t: torch.ones(2)), "model.extra.weight"),
    "dense weight left": (put(f"{UP}.weight", lambda t: torch.ones(96, 64)), f"{UP}.weight "),
    "zero beyond 4 bits": (put(f"{UP}.weight_zero", lambda t: t + 16), f"{UP}.weight_zero"),
}


@pytest.mark.parametrize("case", EDITS)
def test_tensors_that_do_not_fit(case: str, folder: Path, kit: SimpleNamespace, tmp_path: Path) -> None:
    edit, named = EDITS[case]
    broken = changed(folder, tmp_path / "broken", kit, edit)
    with pytest.raises(InputError, match=named) as caught:
        load_model(broken)
    assert "\n" not in str(caught.value)
    from transformers import AutoModelForCausalLM

    with pytest.raises(InputError, match=named):  # the plug-in alone refuses as well
        AutoModelForCausalLM.from_pretrained(broken)


def test_nan_scale(folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    entry = Checkpoint.open(broken).entry(f"{UP}.weight_scale")
    with entry.file.open("r+b") as handle:
        handle.seek(entry.start)
        handle.write(b"\xc0\x7f")  # a bfloat16 NaN
    with pytest.raises(InputError, match=f"{UP}.weight_scale"):
        load_model(broken)


CONFIGS = {
    "newer format": ({"format_version": 9}, "format_version"),
    "unknown key": ({"surprise": 1}, "surprise"),
    "unknown keep": ({"keep": ["model.layers.7.mlp.up_proj"]}, "layers.7"),
    "unknown clip": ({"a_clips": {"nowhere": 0.5}}, "nowhere"),
    "bits of an unknown linear": ({"a_bits": {"nowhere": 8}}, "nowhere"),
    "bits of a linear in 16 bits": ({"a_bits": {"lm_head": 8}}, "lm_head"),
    "bits out of range": ({"a_bits": {UP: 9}}, "9-bit activations"),
    "bits that are no number": ({"a_bits": {UP: "8"}}, "'8' is no whole number"),
    "bits that are no table": ({"a_bits": [8]}, "malformed"),
    "negative sinks": ({"sink_tokens": -1}, "sink_tokens"),
    "sinks without end": ({"sink_tokens": 10**9}, "between 0 and 4096"),
    "half a sink": ({"sink_tokens": 0.5}, "no whole number"),
    "simulated or not": ({"fake": "no"}, "neither true nor false"),
    "a grid that is no truth": ({"scheme": {"a_sym": "yes"}}, "a_sym is 'yes', true or false is needed"),
    "one for true": ({"scheme": {"w_sym": 1}}, "w_sym is 1, true or false is needed"),
    "true for one": ({"scheme": {"w_group": True}}, "w_group is True|group size"),
    "a group beyond all columns": ({"scheme": {"w_group": 2**63}}, "group size"),
    "r4 of another size": ({"online": {"r4": {"size": 64, "block": 64, "bases": []}}}, "r4"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_configs_that_do_not_fit(case: str, folder: Path, tmp_path: Path) -> None:
    changes, named = CONFIGS[case]
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    config = read_json(broken / "config.json")
    entry = config["quantization_config"]
    entry.update({**changes, **({"scheme": {**entry["scheme"], **changes["scheme"]}} if "scheme" in changes else {})})
    write_json(broken / "config.json", config)
    with pytest.raises(DfqError, match=named) as caught:
        load_model(broken)
    assert "\n" not in str(caught.value)


def test_not_a_checkpoint(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(InputError, match=r"config\.json"):
        load(tmp_path)
    with pytest.raises(InputError, match="not a folder"):
        load(tmp_path / "nothing")
    with pytest.raises(InputError, match="tokenizer"):
        load(folder)
    with pytest.raises(UnsupportedError, match="float64"):
        load_model(folder, "float64")


def test_folders_that_point_elsewhere(kit: SimpleNamespace, tmp_path: Path) -> None:
    source = kit.build(tmp_path / "source")
    good = Checkpoint.open(source)
    (source / "adapter_config.json").write_text("{}")
    with pytest.raises(UnsupportedError, match="adapter"):
        load_model(source)
    (source / "adapter_config.json").unlink()
    write_json(source / "config.json", {**good.config, "transformers_weights": "other.safetensors"})
    with pytest.raises(UnsupportedError, match="transformers_weights"):
        load_model(source)
    write_json(source / "config.json", good.config)
    (source / "model.safetensors").rename(source / "shard.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(good.entries, "shard.safetensors")}
    write_json(source / "model.safetensors.index.json", index)
    load_model(source)
    kit.write(tmp_path / "decoy", good.config, {"model.norm.weight": torch.ones(64)})
    shutil.copy(tmp_path / "decoy" / "model.safetensors", source)
    with pytest.raises(InputError, match="two sets of weights"):
        load_model(source)


def test_other_ways_of_loading(folder: Path) -> None:
    from transformers import AutoModel, AutoModelForCausalLM

    with pytest.raises(UnsupportedError, match="AutoModelForCausalLM"):
        AutoModel.from_pretrained(folder)
    with pytest.raises(UnsupportedError, match="eager"):
        AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
