"""A tiny random VLM in W4A4KV4: the shipped tokenizer and chat template, a tower of two patches per side."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from dfrot import reference
from dfrot.arch import describe
from dfrot.checkpoint_writer import SafetensorsWriter, TensorPlan
from dfrot.files import read_json, write_json
from dfrot.quant.scheme import QuantScheme
from dfrot.reference import build_vlm
from dfrot.runtime.load import load_model
from dfrot.stages.quantize.run import quantize
from dfrot.stages.quantize.settings import QuantizeSettings
from dfrot.stages.rotate.run import rotate
from dfrot.stages.rotate.settings import RotateSettings
from dfrot.vision.llava_layout import VisionConfig
from dfrot.vision.llava_model import compose, save_vision_of
from dfrot_cli.main import main

IMAGE, WIDTH = 4094, 64
TOWER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}


def command(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


def _language_model(folder: Path) -> None:
    config = read_json(reference.path() / "config.json")
    sizes = {"hidden_size": WIDTH, "intermediate_size": 96, "num_hidden_layers": 2, "head_dim": 16}
    config |= {**sizes, "dtype": "float32"}
    write_json(folder / "config.json", config)
    shapes = describe(config).tensors()
    writer = SafetensorsWriter(folder, [TensorPlan(key, torch.float32, shape) for key, shape in shapes.items()])
    generator = torch.Generator().manual_seed(0)
    for key, shape in shapes.items():
        scale = (1.0 if "embed" in key else 1.5 * shape[-1] ** -0.5) if len(shape) == 2 else 0.2
        writer.write(key, scale * torch.randn(shape, generator=generator) + (1.0 if "norm" in key else 0.0))
    writer.sync()


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vlm") / "original"
    folder.mkdir()
    _language_model(folder)
    for name in ("generation_config.json", "tokenizer_config.json"):
        shutil.copyfile(reference.path() / name, folder / name)
    shutil.copyfile(build_vlm.path() / "chat_template.jinja", folder / "chat_template.jinja")
    tokenizer = build_vlm.with_image_token(read_json(reference.path() / "tokenizer.json"), IMAGE)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    torch.manual_seed(0)
    config = VisionConfig(TOWER, IMAGE)
    model = compose(load_model(folder), config)
    for part in (model.model.multi_modal_projector.linear_1, model.model.multi_modal_projector.linear_2):
        torch.nn.init.normal_(part.weight, std=2 * part.in_features**-0.5)
        torch.nn.init.normal_(part.bias)
    save_vision_of(model, folder, config)
    return folder


@pytest.fixture(scope="session")
def rotated(original: Path) -> Path:
    out = original.parent / "rotated"
    rotate(original, out, RotateSettings(method="orthogonal", dataset=None, seqlen=32))
    return out


@pytest.fixture(scope="session")
def packed(rotated: Path) -> Path:
    out = rotated.parent / "packed"
    quantize(rotated, None, out, QuantizeSettings(scheme=QuantScheme.parse("w4a4kv4"), algorithm="rtn"))
    return out


@pytest.fixture(scope="session")
def dfq() -> Any:
    """The command line."""
    return command
