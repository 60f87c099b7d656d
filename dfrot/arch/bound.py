"""The description of one checkpoint: an architecture with the sizes of its `config.json`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from dfrot.arch.space import Size, Space
from dfrot.arch.spec import ArchSpec, Linear
from dfrot.arch.wrapper import Wrapper
from dfrot.checkpoint import Checkpoint, TensorEntry
from dfrot.errors import InputError, UnsupportedError

ROTARY_TABLE = "rotary_emb.inv_freq"
"""End of the names of tensors that old checkpoints hold and nobody reads: they are computed."""


@dataclass(frozen=True)
class Tap:
    """Linears fed by the same activations: they share one Hessian and one activation quantizer."""

    name: str
    """The relative name of the first linear of the group."""
    linears: tuple[Linear, ...]
    reads: Space
    """The space of the activations."""

    @property
    def expert(self) -> int | None:
        """The member of a mixture whose tokens these are; None: all tokens."""
        return self.linears[0].expert


@dataclass(frozen=True)
class BoundArch:
    """An ArchSpec with the sizes of one checkpoint."""

    spec: ArchSpec
    config: dict[str, Any]
    """The language model's `config.json`."""
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    sizes: dict[str, int] = field(repr=False)
    """The value of every `Size`."""
    wrapper: Wrapper | None = None
    """The VLM around the language model, if any."""

    @property
    def hidden(self) -> int:
        """Width of the residual stream."""
        return self.sizes[Size.HIDDEN]

    @property
    def intermediate(self) -> int:
        """Width of the MLP, or of one expert."""
        return self.sizes[Size.INTERMEDIATE]

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding and of the head."""
        return self.sizes[Size.VOCAB]

    @property
    def norm_eps(self) -> float:
        """What RMSNorms add to the mean square; transformers' default where `config.json` has none."""
        return float(self.config.get("rms_norm_eps", 1e-6))

    @property
    def n_experts(self) -> int:
        """Experts of a layer; 0 without a mixture."""
        return self.sizes[Size.EXPERTS]

    @property
    def tied(self) -> bool:
        """Whether the head shares the embedding's weight."""
        return bool(self.config.get("tie_word_embeddings", self.spec.tied_by_default))

    def scalar(self, role: str) -> float:
        """The constant of a role of `Scalars`, 1 where the architecture has none. Raises InputError for no number."""
        key = getattr(self.spec.scalars, role)
        value = self.config.get(key, 1.0) if key else 1.0
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < abs(value) < math.inf:
            raise InputError(f"config.json: {key} is {value!r}, a number other than 0 is needed")
        return float(value) ** 0.5 if role == "embed" and self.spec.scalars.embed_root else float(value)

    # --- names -------------------------------------------------------------------------------------------------

    def prefix(self, layer: int) -> str:
        """The module of a block: `model.layers.3`."""
        return self.spec.block.format(i=layer)

    def full(self, layer: int, name: str) -> str:
        """`model.layers.3` + `self_attn.q_proj` -> `model.layers.3.self_attn.q_proj`."""
        return f"{self.prefix(layer)}.{name}"

    def attention(self, layer: int) -> str:
        """The attention module of a block: `model.layers.3.self_attn`."""
        name = next(linear.name for linear in self.spec.linears if linear.enters(Space.QUERY_KEY))
        return self.full(layer, name.rpartition(".")[0])

    def module(self, name: str) -> str:
        """Where transformers keeps what the description calls `name` (a full or relative name)."""
        if self.wrapper is not None:
            name = self.wrapper.module(name)
        memory = self.spec.experts.memory if self.spec.experts is not None else None
        return name if memory is None else _replace_segment(name, *memory)

    def stored(self, module: str) -> str:
        """The inverse of `module`, which also understands the names that files use."""
        if self.wrapper is not None:
            module = self.wrapper.described(module)
        memory = self.spec.experts.memory if self.spec.experts is not None else None
        return module if memory is None else _replace_segment(module, memory[1], memory[0])

    def written(self, name: str) -> str:
        """The name that tensor `name` of the description has in the files that dfq writes."""
        return name if self.wrapper is None else self.wrapper.module(name)

    def is_outside(self, name: str) -> bool:
        """Whether a tensor belongs to the VLM around the language model."""
        return self.wrapper is not None and self.wrapper.is_outside(name)

    # --- linears and tensors -----------------------------------------------------------------------------------

    def taps(self) -> tuple[Tap, ...]:
        """Groups of linears by what feeds them, in the order of computation."""
        fed_by = {name: norm.name for norm in self.spec.norms for name in norm.feeds}
        groups: dict[tuple[str, int | None], list[Linear]] = {}
        for linear in self.spec.linears:
            groups.setdefault((fed_by.get(linear.name, linear.name), linear.expert), []).append(linear)
        return tuple(Tap(group[0].name, tuple(group), group[0].reads) for group in groups.values())

    def linears(self) -> Iterator[tuple[int, Linear, str]]:
        """Every block linear as (layer, declaration, full module name)."""
        for layer in range(self.n_layers):
            for linear in self.spec.linears:
                yield layer, linear, self.full(layer, linear.name)

    def shape(self, linear: Linear) -> tuple[int, int]:
        """[rows, cols] of a linear's weight."""
        return self.sizes[linear.rows], self.sizes[linear.cols]

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes that every checkpoint of this architecture has, besides `biases`."""
        spec, hidden = self.spec, self.hidden
        shapes: dict[str, tuple[int, ...]] = {f"{spec.embed}.weight": (self.vocab_size, hidden)}
        for layer in range(self.n_layers):
            for norm in spec.norms:
                shapes[self.full(layer, norm.name) + ".weight"] = (hidden,)
            for number, name in enumerate(spec.head_norms):
                size = spec.head_norm_sizes[number] if spec.head_norm_sizes else Size.HEAD_DIM
                shapes[self.full(layer, name) + ".weight"] = (self.sizes[size],)
            for linear in (*spec.routers, *spec.linears):
                shapes[self.full(layer, linear.name) + ".weight"] = self.shape(linear)
        shapes[f"{spec.final_norm.name}.weight"] = (hidden,)
        if not self.tied:
            shapes[f"{spec.head.name}.weight"] = self.shape(spec.head)
        return shapes

    def biases(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the biases that the linears of the blocks have."""
        shapes: dict[str, tuple[int, ...]] = {}
        for _, linear, name in self.linears():
            key = self.spec.bias_switch(linear.name)
            if key is not None and (not key or self.config.get(key)):
                shapes[f"{name}.bias"] = (self.sizes[linear.rows],)
        return shapes

    # --- comparing with a checkpoint ---------------------------------------------------------------------------

    def check(self, checkpoint: Checkpoint, more: Mapping[str, tuple[int, ...]] | None = None) -> None:
        """Compare a checkpoint with dense weights with the description. more: names and shapes of tensors that it has
        besides. Raises InputError for a missing tensor, a wrong shape or dtype, or a tensor that is not described,
        UnsupportedError for packed weights."""
        expected = {**self.tensors(), **self.biases(), **(more or {})}
        for name, shape in expected.items():
            if name not in checkpoint.entries and f"{name}_packed" in checkpoint.entries:
                raise UnsupportedError(
                    f"{checkpoint.path}: is quantized already; give the 16-bit checkpoint", file=checkpoint.path
                )
            entry = checkpoint.entry(name)
            if entry.shape != shape:
                raise _wrong(entry, name, f"shape {list(entry.shape)}, config.json needs {list(shape)}")
            _require_float(entry, name)
        for name, entry in checkpoint.entries.items():
            if name in expected or name.endswith(ROTARY_TABLE):
                continue
            if self.is_outside(name):
                self._check_outside(name, entry)
                continue
            raise InputError(
                f"{entry.file}: tensor {name} is not part of a {self.spec.model_type} model; "
                "is config.json the right one?",
                file=entry.file,
                tensor=name,
            )

    def _check_outside(self, name: str, entry: TensorEntry) -> None:
        """The same for a tensor of the VLM around the language model."""
        assert self.wrapper is not None
        _require_float(entry, name)
        if not entry.shape:
            raise UnsupportedError(
                f"{entry.file}: tensor {name}: a single value, which dfq does not carry over yet",
                file=entry.file,
                tensor=name,
            )
        if self.wrapper.writes(name) and entry.shape[0] != self.hidden:
            raise _wrong(entry, name, f"shape {list(entry.shape)}, the language model is {self.hidden} wide")


def _wrong(entry: TensorEntry, name: str, fault: str) -> InputError:
    return InputError(f"{entry.file}: tensor {name}: {fault}", file=entry.file, tensor=name)


def _require_float(entry: TensorEntry, name: str) -> None:
    if entry.dtype.is_floating_point and entry.dtype.itemsize == 1:
        raise _wrong(
            entry, name, f"holds FP8 ({entry.dtype}) without an entry that says how; start from 16-bit weights"
        )
    if not entry.dtype.is_floating_point:
        raise _wrong(entry, name, f"dtype {entry.dtype} is not a weight's; fetch it again")


def _replace_segment(name: str, old: str, new: str) -> str:
    """`name` with one of its segments between dots replaced."""
    return ".".join(new if segment == old else segment for segment in name.split("."))
