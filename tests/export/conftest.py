"""Tiny random models with a real byte-level BPE tokenizer, packed and exported once per session."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dfrot.arch import describe
from dfrot.checkpoint_writer import SafetensorsWriter, TensorPlan
from dfrot.export import engines
from dfrot.export.check import quantize_by_rounding
from dfrot.quant.scheme import QuantScheme
from dfrot.runtime.load import load_model
from dfrot.stages.calibrate.run import calibrate
from dfrot.stages.calibrate.settings import CalibrateSettings

ROWS = 288  # more than the tokenizer has: the rest is padding
CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": ROWS,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "torch_dtype": "bfloat16",
}
QKV = tuple(f"self_attn.{name}_proj" for name in "qkv")
TEMPLATE = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}{% endfor %}"


def tokenizer(folder: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate(["<s>", "</s>", *letters, "th", "the", "Ġthe", "in"])}
    made = Tokenizer(models.BPE(vocab, [("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    made.add_special_tokens(["<s>", "</s>"])
    made.add_tokens([AddedToken("\f", normalized=False)])
    made.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def build(
    folder: Path, seed: int = 0, bias: tuple[str, ...] = (), dtype: torch.dtype = torch.bfloat16, **changes: Any
) -> Path:
    """A random checkpoint whose logits are far from uniform."""
    folder.mkdir(parents=True)
    config = {**CONFIG, **changes}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer(folder)
    arch = describe(config)
    shapes = {**arch.tensors(), **arch.biases()}
    shapes |= {f"{n}.bias": (arch.sizes[s.rows],) for _, s, n in arch.linears() if s.name in bias}
    generator = torch.Generator().manual_seed(seed)
    writer = SafetensorsWriter(folder, [TensorPlan(name, dtype, shape) for name, shape in shapes.items()])
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=generator)
        scale = 1.0 if "embed" in name else shape[-1] ** -0.5 if len(shape) == 2 else 0.2
        writer.write(name, (values * scale + (1.0 if "norm" in name else 0.0)).to(dtype))
    return folder


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Relative RMS difference."""
    return float((ours - theirs).norm() / ours.norm())


@pytest.fixture(scope="session")
def kit() -> SimpleNamespace:
    """The helpers of this file: test modules cannot import a conftest."""
    return SimpleNamespace(build=build, difference=difference, config=CONFIG, qkv=QKV, rows=ROWS, template=TEMPLATE)


@pytest.fixture(scope="session")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("dense") / "model")


@pytest.fixture(scope="session")
def pack(tmp_path_factory: pytest.TempPathFactory, dense: Path) -> Callable[..., Path]:
    """pack("w4a16-g32", model=None) -> the dfq checkpoint of that scheme, made once."""
    root, made = tmp_path_factory.mktemp("packed"), dict[tuple[str, Path], Path]()

    def get(scheme: str, model: Path | None = None) -> Path:
        key = (scheme, model or dense)
        if key not in made:
            parsed = QuantScheme.parse(scheme)
            calibration = None
            if parsed.number_format == "nvfp4" and parsed.a_bits != 16:
                text, calibration = root / "text.txt", root / f"cal-{len(made)}"
                text.write_text("the thin thing in the inn\n" * 400)
                calibrate(key[1], calibration, CalibrateSettings(str(text), samples=2, seqlen=32))
            made[key] = quantize_by_rounding(key[1], parsed, root / f"{scheme}-{len(made)}", calibration)
        return made[key]

    return get


@pytest.fixture(scope="session")
def ids() -> Tensor:
    return torch.randint(2, 260, (48,), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def own(ids: Tensor) -> Callable[[Path], Tensor]:
    """own(folder) -> dfq's float32 logits on `ids`, computed once."""
    known: dict[Path, Tensor] = {}

    def get(folder: Path) -> Tensor:
        if folder not in known:
            known[folder] = engines.transformers_logits(load_model(folder, torch.float32))(ids)
        return known[folder]

    return get


@pytest.fixture(scope="session")
def engine() -> Callable[[str, Path], engines.Logits]:
    """engine(target, folder) -> its logits; skips where the engine's package is missing."""

    def get(target: str, folder: Path) -> engines.Logits:
        packages = {"gguf": "llama_cpp", "compressed-tensors": "compressed_tensors"}
        if target in packages:
            pytest.importorskip(packages[target])
        return engines.ENGINES[target].load(folder)

    return get
