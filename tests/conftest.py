"""Settings of every test (no network, seeded torch, thread count put back) and the small models that several packages
share: a random Llama, one with a planted massive activation, the reference model without its planted outliers."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

# Workers of pytest-xdist have one core each; before anything imports torch. Tests about threads set their own number.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
# Before anything imports huggingface_hub: a test that needs the network fails at once instead of waiting for it.
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    import torch

    state, threads = torch.get_rng_state(), torch.get_num_threads()
    torch.manual_seed(0)
    yield
    torch.set_rng_state(state)
    torch.set_num_threads(threads)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes `isa` runs once per instruction set of this machine, or once on the reference."""
    if "isa" in metafunc.fixturenames:
        from dfrot_kernels import native

        metafunc.parametrize("isa", native.available_isas() or ["reference"], indirect=True)


@pytest.fixture
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """The instruction set in force, or "reference" where no native library is installed."""
    from dfrot_kernels import native

    if request.param == "reference":
        yield "reference"
        return
    before = native.isa()
    native.set_isa(request.param)
    yield request.param
    native.set_isa(before)


# ---- outliers: tests/outliers and tests/stages/outliers ----
# what was planted in the reference model, see dfrot/reference/MODEL_CARD.md
MASSIVE_CHANNELS = {31: 2400.0, 147: -1440.0, 202: 480.0}  # channel -> value
MASSIVE_TOKENS = {0, 4095}
OUTLIER_GAINS = {11: 13.3, 58: 10.2, 96: 8.6, 143: 7.0, 180: 7.0, 230: 5.3}  # channel -> factor of the norm's gain
SMALL_LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 260,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "torch_dtype": "float32",
}
MASSIVE_ROW, MASSIVE_COLUMN, MASSIVE_TOKEN = 5, 7, "Z"


def _write_safetensors(folder: Path, tensors: dict[str, Any]) -> None:
    from dfrot.checkpoint_writer import SafetensorsWriter, TensorPlan

    writer = SafetensorsWriter(folder, [TensorPlan(name, x.dtype, tuple(x.shape)) for name, x in tensors.items()])
    for name, tensor in tensors.items():
        writer.write(name, tensor)


@pytest.fixture(scope="session")
def planted_outliers() -> SimpleNamespace:
    """What the reference model's card says was planted: `massive`, `tokens`, `gains`."""
    return SimpleNamespace(massive=MASSIVE_CHANNELS, tokens=MASSIVE_TOKENS, gains=OUTLIER_GAINS)


@pytest.fixture(scope="session")
def reference_without_outliers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference model with its planted outliers taken out: gains divided, the columns that read them multiplied,
    the planted embedding entries set to zero."""
    import torch

    from dfrot import reference
    from dfrot.checkpoint import Checkpoint

    source = Checkpoint.open(reference.path())
    folder = tmp_path_factory.mktemp("control") / "control"
    shutil.copytree(source.path, folder)
    factor = torch.ones(256)
    factor[list(OUTLIER_GAINS)] = torch.tensor(list(OUTLIER_GAINS.values()))
    tensors = {}
    for name in source.entries:
        tensor = source.read(name).clone()
        if name.endswith(("input_layernorm.weight", "post_attention_layernorm.weight")):
            tensor = (tensor.float() / factor).to(tensor.dtype)
        elif name.endswith(tuple(f"{linear}_proj.weight" for linear in ("q", "k", "v", "gate", "up"))):
            tensor = (tensor.float() * factor).to(tensor.dtype)
        elif name == "model.embed_tokens.weight":
            tensor[torch.tensor(sorted(MASSIVE_TOKENS))[:, None], torch.tensor(list(MASSIVE_CHANNELS))] = 0.0
        tensors[name] = tensor
    (folder / "model.safetensors").unlink()
    _write_safetensors(folder, tensors)
    return folder


def _byte_tokenizer(folder: Path) -> None:
    """Write a byte-level tokenizer without merges: the id of a byte is its index in the sorted alphabet, plus 1."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<s>": 0, **{token: index + 1 for index, token in enumerate(alphabet)}}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


@pytest.fixture
def small_llama(tmp_path: Path) -> Callable[..., Path]:
    """small_llama(name, change=None, **config) -> a random checkpoint; `change(tensors)` edits it before it is
    written."""
    import torch

    from dfrot.arch import describe

    def build(name: str = "model", change: Any = None, **changes: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        config = {**SMALL_LLAMA, **changes}
        (folder / "config.json").write_text(json.dumps(config))
        _byte_tokenizer(folder)
        generator = torch.Generator().manual_seed(0)
        tensors = {}
        for key, shape in describe(config).tensors().items():
            values = torch.randn(shape, generator=generator) * (shape[-1] ** -0.5 if len(shape) == 2 else 0.0)
            tensors[key] = values + (1.0 if "norm" in key else 0.0)
        if change is not None:
            change(tensors)
        _write_safetensors(folder, tensors)
        return folder

    return build


def _plant_massive_activation(tensors: dict[str, Any]) -> None:
    """Layer 1: intermediate channel 7 opens for the token Z alone; one entry of down_proj writes it to channel 5."""
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    embed = tensors["model.embed_tokens.weight"]
    embed[:, 0] = 0.0
    embed[alphabet.index(MASSIVE_TOKEN) + 1] = 0.0
    embed[alphabet.index(MASSIVE_TOKEN) + 1, 0] = 3.0
    for layer in range(3):  # nothing else writes channel 0, which marks Z
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            tensors[f"model.layers.{layer}.{name}.weight"][0] = 0.0
    for name in ("gate", "up"):
        row = tensors[f"model.layers.1.mlp.{name}_proj.weight"][MASSIVE_COLUMN]
        row.zero_()
        row[0] = 2.0
    tensors["model.layers.1.mlp.down_proj.weight"][MASSIVE_ROW, MASSIVE_COLUMN] = 40.0


@pytest.fixture
def massive_weight() -> SimpleNamespace:
    """A massive activation made by one weight. change: the edit for `small_llama` that plants it; row, column: of
    down_proj in block 1; token: the token that carries it."""
    return SimpleNamespace(
        change=_plant_massive_activation, row=MASSIVE_ROW, column=MASSIVE_COLUMN, token=MASSIVE_TOKEN
    )


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    """A text of 400 lines, each of which holds the token Z once."""
    file = tmp_path / "text.txt"
    file.write_text("".join(f"line {n} of a text that is long enough; Z ends it\n" for n in range(400)))
    return file


# ---- decoding: tests/generation, tests/draft, tests/stages/draft, tests/vision ----


def _helpers(name: str) -> Any:
    """The module tests/NAME.py, loaded when a test needs it: tests are no package."""
    spec = importlib.util.spec_from_file_location(f"tests_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def decoding() -> Any:
    """tests/decoding.py."""
    return _helpers("decoding")


@pytest.fixture(scope="session")
def readings() -> Any:
    """tests/readings.py."""
    return _helpers("readings")


@pytest.fixture(scope="session")
def kit(decoding: Any) -> SimpleNamespace:
    """Random targets, and drafts that are random, always right or always wrong."""
    return SimpleNamespace(
        model=decoding.model,
        with_kv4=decoding.with_kv4,
        scripted=decoding.Scripted,
        random_draft=decoding.random_draft,
        vocab=decoding.VOCAB,
        kinds=list(decoding.KINDS),
    )


@pytest.fixture(scope="session")
def targets(decoding: Any) -> Callable[..., Any]:
    """Random targets by name: `llama`, `llama-bf16`, `llama-kv4`, `mistral`, ..."""
    return decoding.Targets()  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def vlms(decoding: Any) -> Any:
    """Small random VLMs, tests/vlm_models.py: target(name), inputs(name, seed), prompt(name, seed), draft(arch)."""
    return _helpers("vlm_models")


@pytest.fixture(scope="session")
def reference() -> Path:
    """The model that ships."""
    from dfrot import reference as shipped

    return shipped.path()


@pytest.fixture(scope="session")
def reference_engine() -> Any:
    """An engine for the reference model, decoding plainly."""
    from dfrot import reference as shipped
    from dfrot.generation.engine import Engine

    return Engine(shipped.path())


@pytest.fixture(scope="session")
def reference_draft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an untrained draft of the reference model."""
    import torch

    from dfrot import reference as shipped
    from dfrot.arch import open_described
    from dfrot.draft.models.build import build, config_for
    from dfrot.draft.store import save_draft
    from dfrot.vision.fingerprint import checkpoint_fingerprint

    folder = tmp_path_factory.mktemp("draft")
    _, arch = open_described(shipped.path())
    torch.manual_seed(0)
    fingerprint = checkpoint_fingerprint(shipped.path())
    save_draft(folder, build(config_for(arch, "dream", target_fingerprint=fingerprint)))
    return folder
