"""What an exported folder says it computes, in plain torch: weights as stored, activations as declared.

Weights are read by `open_model`, so that nothing of the engine is involved, in float32. Activations are rounded as the
format defines it (`engine_arithmetic`; FP4: groups). The same model without rounding tells what 16-bit activations
give."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfrot.checkpoint import Checkpoint
from dfrot.errors import UnsupportedError
from dfrot.export.engine_arithmetic import round_tokens
from dfrot.export.fp4_layout import INPUT_SCALE
from dfrot.files import read_json, write_json
from dfrot.inputs import open_model
from dfrot.inputs.gguf.folder import gguf_file
from dfrot.quant.fp4 import round_groups
from dfrot.quant.scheme import FULL, INTEGERS, MXFP4, NVFP4
from dfrot.runtime.load_foreign import dense_model

Rounding = Callable[[Tensor], Tensor]
TRANSFORM = "R4_input"


@dataclass(frozen=True)
class Declaration:
    """What an exported folder asks of an engine besides its weights."""

    method: str
    """Export format."""
    storage: str
    """How weights are kept, as `targets.Storage` names it."""
    w_bits: int = FULL
    """Bits per weight."""
    w_sym: bool = True
    """Whether the grid is symmetric."""
    group: int = 0
    """Weights per scale; 0: a whole row."""
    a_bits: int = FULL
    """Bits of activations."""
    number_format: str = INTEGERS
    """`int`, or a format of FP4."""
    r4_block: int = 0
    """Block of an online rotation before down_proj; 0: none."""

    @property
    def name(self) -> str:
        """The declaration as a scheme's name: w4a16-g32."""
        if self.number_format != INTEGERS:
            return self.number_format + ("a16" if self.a_bits == FULL else "")
        weights = f"w{self.w_bits}a{self.a_bits}" + (f"-g{self.group}" if self.group else "")
        grids = ("" if self.w_sym else "-wasym") + ("-sym" if self.a_bits != FULL else "")
        return weights + grids + ("+R4" if self.r4_block else "")


def read_declaration(folder: Path) -> Declaration:
    """What an exported folder declares. Raises UnsupportedError for a folder that no target writes."""
    if gguf_file(folder) is not None:
        return _gguf_declaration(folder)
    config = read_json(folder / "config.json")
    entry = config.get("quantization_config") if isinstance(config, dict) else None
    entry = entry if isinstance(entry, dict) else {}
    method = entry.get("quant_method")
    try:
        if method == "gptq":
            version = 2 if entry.get("checkpoint_format") == "gptq_v2" else 1
            group = max(int(entry.get("group_size", -1)), 0)
            return Declaration("gptq", f"gptq v{version}", int(entry["bits"]), bool(entry.get("sym", True)), group)
        if method == "compressed-tensors":
            return _compressed_tensors_declaration(entry)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise UnsupportedError(
            f"{folder}: its quantization_config is not {method}'s ({error!r})", file=folder / "config.json"
        ) from None
    raise UnsupportedError(
        f"{folder}: is no export; write one with dfq export `to`", field="to", file=folder / "config.json"
    )


def _compressed_tensors_declaration(entry: dict[str, Any]) -> Declaration:
    group = next(
        iter(entry["config_groups"].values())
    )  # dfq writes one; of other tools' folders the first is described
    weights, activations = group["weights"], group.get("input_activations")
    storage = str(group.get("format") or entry.get("format"))
    number_format = INTEGERS
    if weights.get("type") == "float":
        number_format = NVFP4 if storage.startswith("nvfp4") else MXFP4
    transforms = (entry.get("transform_config") or {}).get("config_groups") or {}
    return Declaration(
        "compressed-tensors",
        storage,
        int(weights.get("num_bits", 8)),
        bool(weights.get("symmetric", True)),
        int(weights.get("group_size") or 0),
        FULL if activations is None else int(activations.get("num_bits", 8)),
        number_format,
        int(transforms["R4"]["head_dim"]) if "R4" in transforms else 0,
    )


def _gguf_declaration(folder: Path) -> Declaration:
    """The commonest type of the file's quantized matrices."""
    from dfrot.export.gguf.facts import QUANTIZED_TYPES
    from dfrot.export.targets import GGUF
    from dfrot.inputs.gguf.header import read_header

    file = gguf_file(folder)
    assert file is not None
    types = [tensor.type for tensor in read_header(file).tensors if tensor.name.startswith("blk.")]
    quantized = [name for name in types if name in QUANTIZED_TYPES]
    if not quantized:
        return Declaration("gguf", "dense")
    name = max(sorted(set(quantized)), key=quantized.count)
    for storage in GGUF.storages:
        if storage.name == name:
            return Declaration("gguf", name, storage.bits, storage.symmetric, storage.block)
    return Declaration("gguf", name, w_bits=4)


@dataclass(frozen=True)
class Definition:
    """The losses of a folder by its own declaration."""

    declared: list[Tensor]
    """Per window, float64 [S - 1]: with activations as declared."""
    sixteen: list[Tensor]
    """The same with activations in 16 bits: `declared` itself where those are declared."""
    tokens: list[int]
    """Greedy tokens behind the prompt, as declared."""


def define(folder: Path, windows: Tensor, prompt: Tensor, new_tokens: int) -> Definition:
    """Compute what `folder` declares on int64 windows [n, S] and prompt [S]. Raises DfqError for a folder that dfq
    cannot read."""
    declaration = read_declaration(folder)
    with without_transform(folder, declaration) as plain:
        checkpoint = open_model(plain, torch.float32)
        state = {name: checkpoint.read(name) for name in checkpoint.entries if TRANSFORM not in name and
                 not name.endswith(INPUT_SCALE)}  # fmt: skip
        model = dense_model(checkpoint.config, state)
    if declaration.r4_block:
        for name, module in model.named_modules():
            if name.endswith("down_proj"):
                module.register_forward_pre_hook(_before(_hadamard(declaration.r4_block)))
    sixteen = [_token_losses(model, window) for window in windows]
    declared = sixteen
    if declaration.a_bits != FULL:
        _round_activations(model, folder, declaration)
        declared = [_token_losses(model, window) for window in windows]
    return Definition(declared, sixteen, _greedy(model, prompt, new_tokens))


@contextmanager
def without_transform(folder: Path, declaration: Declaration) -> Iterator[Path]:
    """The folder as `open_model` reads it: an online rotation, which is applied here, is not in its config.json."""
    if not declaration.r4_block:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="dfq-plain-") as name:
        plain = Path(name)
        for path in folder.iterdir():
            if path.is_file() and path.name != "config.json":
                (plain / path.name).symlink_to(path.resolve())
        config = read_json(folder / "config.json")
        del config["quantization_config"]["transform_config"]
        write_json(plain / "config.json", config)
        yield plain


def _before(function: Rounding) -> Callable[[Any, tuple[Tensor, ...]], tuple[Tensor]]:
    """A hook that changes the input of a linear."""
    return lambda module, args: (function(args[0]),)


def _hadamard(block: int) -> Rounding:
    """x H for every block of columns, H orthogonal."""
    from dfrot.export.compressed_tensors import sylvester

    matrix = sylvester(block) / block**0.5
    return lambda x: (x.reshape(*x.shape[:-1], -1, block) @ matrix.to(x.dtype)).reshape(x.shape)


def _round_activations(model: Any, folder: Path, declaration: Declaration) -> None:
    """Round the inputs of every quantized linear as declared. Behind an online rotation: hooks run in order."""
    stored = Checkpoint.open(folder)
    for name in sorted(stored.entries):
        module, _, part = name.rpartition(".")
        if part != "weight_packed" and not (part == "weight" and f"{module}.weight_scale" in stored):
            continue
        rounding: Rounding
        if declaration.number_format == INTEGERS:
            rounding = _token_rounding(declaration.a_bits)
        else:
            scale = f"{module}.{INPUT_SCALE}"
            shared = float(stored.read(scale)) if scale in stored else None
            rounding = _group_rounding(declaration.number_format, shared)
        model.get_submodule(module).register_forward_pre_hook(_before(rounding))


def _token_rounding(bits: int) -> Rounding:
    return lambda x: round_tokens(x, bits)


def _group_rounding(number_format: str, shared: float | None) -> Rounding:
    return lambda x: round_groups(x, number_format, shared)


@torch.inference_mode()
def _token_losses(model: Any, window: Tensor) -> Tensor:
    logits = model(input_ids=window[None], use_cache=False).logits[0, :-1]
    return torch.nn.functional.cross_entropy(logits.double(), window[1:], reduction="none")


@torch.inference_mode()
def _greedy(model: Any, prompt: Tensor, count: int) -> list[int]:
    tokens = prompt
    for _ in range(count):
        logits = model(input_ids=tokens[None], use_cache=False).logits[0, -1]
        tokens = torch.cat([tokens, logits.argmax().view(1)])
    return [int(token) for token in tokens[len(prompt) :]]
