"""What a transformer architecture reads and writes, as data.

A *space* is a basis in which a tensor lives. `residual` is the stream between blocks (rotated by R1), `v` the
value heads (R2, one block per head), `qk` the query and key heads (crossed by RoPE, so R3 can only act online),
`mlp` the gated product that enters down_proj (crossed by the non-linearity, so R4 acts online), `router` the scores
by which a mixture chooses its experts, `vocab` the logits. Everything else, fusing, rotating, calibrating,
quantizing, exporting, is derived from these declarations: no other file knows a model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from dfrot.arch.wrapper import Wrapper
from dfrot.checkpoint import Checkpoint, TensorEntry
from dfrot.errors import InputError, UnsupportedError


@dataclass(frozen=True)
class Linear:
    """One linear of a block: weight [rows, cols]; `rows` and `cols` name sizes of `BoundArch.sizes`.

    parts: of a linear that several were fused into, (space, rows) of the consecutive blocks of rows; `writes` is then
    a name of its own. expert: of which member of a mixture it is a part (None: every token passes it).
    """

    name: str
    reads: str
    writes: str
    rows: str
    cols: str
    parts: tuple[tuple[str, str], ...] = ()
    expert: int | None = None

    def enters(self, space: str) -> bool:
        """Whether any of its rows write `space`."""
        return self.writes == space or space in {part for part, _ in self.parts}


@dataclass(frozen=True)
class Norm:
    """A normalisation with a learned gain.

    feeds: the linears that read its output. late: its gain sits between a residual writer and the residual
    add, where nothing can absorb it. offset: the stored weight is `gain - offset` (Gemma stores gain - 1).
    """

    name: str
    feeds: tuple[str, ...] = ()
    late: bool = False
    offset: float = 0.0


@dataclass(frozen=True)
class Scalars:
    """Constants of `config.json` that multiply whole tensors, by their keys there ("": none). Rotations commute with
    all of them. embed: on embeddings (embed_root: its square root); residual: on what a block adds; attention: on
    scores, in place of head_dim^-1/2; logits: divides them. logits_cap, attention_cap: logits and attention scores x
    become cap * tanh(x / cap), where transformers' configuration has a cap by that name."""

    embed: str = ""
    residual: str = ""
    attention: str = ""
    logits: str = ""
    embed_root: bool = False
    logits_cap: str = ""
    attention_cap: str = ""


@dataclass(frozen=True)
class MixtureSpec:
    """A mixture of gated MLPs in place of one; a router sends each token to a few of them.

    container: the module that holds them, expert e being `container.e`. linears: those of one expert, named relative to
    it, gate before up. router: reads what the experts read; it is rotated with them and never quantized. count, width:
    keys of `config.json`: the number of experts (the first name that is there), an expert's intermediate size. memory:
    (segment of a stored name, what transformers calls it). merged: tensors that hold the weights of all experts at
    once, [experts, rows, cols], by transformers' name, with the linears whose rows follow one another in them: the
    layout of its memory, which it can also write.
    """

    container: str
    linears: tuple[Linear, ...]
    router: Linear
    count: tuple[str, ...]
    width: str
    memory: tuple[str, str] | None = None
    merged: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def expanded(self, count: int) -> tuple[Linear, ...]:
        """The linears of all experts, expert by expert."""
        return tuple(
            replace(one, name=f"{self.container}.{expert}.{one.name}", expert=expert)
            for expert in range(count)
            for one in self.linears
        )


@dataclass(frozen=True)
class ArchSpec:
    """A decoder architecture. Names inside a block are relative to `block.format(i=...)`. Of a mixture, `linears` are
    those outside the experts until `bind` knows how many there are; the norm that feeds the router feeds the experts.

    head_norms: q and k norms inside attention, untouched by every rotation; head_norm_sizes: the sizes of their gains,
    head_dim where nothing is said. requires: (key of `config.json`, values that are supported, what others mean).
    defaults: sizes that published configurations leave out, as transformers fills them in."""

    model_type: str
    embed: str
    block: str
    norms: tuple[Norm, ...]
    linears: tuple[Linear, ...]
    final_norm: Norm
    head: Linear
    head_norms: tuple[str, ...] = ()
    head_norm_sizes: tuple[str, ...] = ()
    requires: tuple[tuple[str, tuple[Any, ...], str], ...] = ()
    defaults: tuple[tuple[str, int], ...] = ()
    tied_by_default: bool = False
    scalars: Scalars = Scalars()
    experts: MixtureSpec | None = None

    @property
    def routers(self) -> tuple[Linear, ...]:
        """Linears that stay in high precision: they decide which others run."""
        return (self.experts.router,) if self.experts is not None else ()

    def refuses(self, space: str) -> str | None:
        """Why this architecture cannot have `space` rotated, or None."""
        late = [norm.name for norm in self.norms if norm.late]
        if space == "residual" and late:
            return (
                f"{self.model_type}: R1 cannot be fused: {late[0]} has a learned gain between a residual writer "
                "and the residual add, and a gain does not commute with a rotation"
            )
        return None

    def bind(self, config: dict[str, Any]) -> BoundArch:
        """Resolve sizes from a `config.json`. Raises InputError on missing or inconsistent values, UnsupportedError for
        what the description does not cover."""
        for key, values, meaning in self.requires:
            if (value := config.get(key)) is not None and value not in values:
                raise UnsupportedError(f"config.json: {key} is {value!r}: {meaning}, which dfq does not support")
        config = {**dict(self.defaults), **config}
        hidden = _size(config, "hidden_size")
        heads = _size(config, "num_attention_heads")
        kv_heads = _size(config, "num_key_value_heads", heads)
        if not config.get("head_dim") and hidden % heads:
            raise InputError(f"config.json: hidden_size {hidden} is not a multiple of num_attention_heads {heads}")
        head_dim = _size(config, "head_dim", hidden // heads)
        if heads % kv_heads:
            raise InputError(
                f"config.json: num_attention_heads {heads} is not a multiple of key/value heads {kv_heads}"
            )
        width = _size(config, self.experts.width if self.experts is not None else "intermediate_size")
        count = 0
        if self.experts is not None:
            named = [key for key in self.experts.count if config.get(key) is not None]
            count = _size(config, (named or self.experts.count)[0])
        return BoundArch(
            spec=self._with_experts(count),
            config=config,
            n_layers=_size(config, "num_hidden_layers"),
            n_heads=heads,
            n_kv_heads=kv_heads,
            head_dim=head_dim,
            sizes={
                "hidden": hidden,
                "q": heads * head_dim,
                "kv": kv_heads * head_dim,
                "mlp": width,
                "vocab": _size(config, "vocab_size"),
                "head_dim": head_dim,
                "qkv": (heads + 2 * kv_heads) * head_dim,
                "gate_up": 2 * width,
                "experts": count,
            },
        )

    def _with_experts(self, count: int) -> ArchSpec:
        """The description with every expert's linears written out."""
        mixture = self.experts
        if mixture is None:
            return self
        experts = mixture.expanded(count)
        readers = tuple(one.name for one in experts if one.reads == "residual")
        norms = tuple(
            replace(norm, feeds=(*norm.feeds, *readers)) if mixture.router.name in norm.feeds else norm
            for norm in self.norms
        )
        return replace(self, linears=(*self.linears, *experts), norms=norms)


@dataclass(frozen=True)
class Tap:
    """Linears fed by the same activations: they share one Hessian and one activation quantizer."""

    name: str  # the relative name of the first linear of the group
    linears: tuple[Linear, ...]
    reads: str

    @property
    def expert(self) -> int | None:
        """The member of a mixture whose tokens these are; None: all tokens."""
        return self.linears[0].expert


@dataclass(frozen=True)
class BoundArch:
    """An ArchSpec with the sizes of one checkpoint. config: the language model's; wrapper: what surrounds it."""

    spec: ArchSpec
    config: dict[str, Any]
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    sizes: dict[str, int] = field(repr=False)
    wrapper: Wrapper | None = None

    @property
    def hidden(self) -> int:
        return self.sizes["hidden"]

    @property
    def intermediate(self) -> int:
        return self.sizes["mlp"]

    @property
    def tied(self) -> bool:
        return bool(self.config.get("tie_word_embeddings", self.spec.tied_by_default))

    def scalar(self, role: str) -> float:
        """The constant of a role of `Scalars`, 1 where the architecture has none. Raises InputError for no number."""
        key = getattr(self.spec.scalars, role)
        value = self.config.get(key, 1.0) if key else 1.0
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < abs(value) < math.inf:
            raise InputError(f"config.json: {key} is {value!r}, a number other than 0 is needed")
        return float(value) ** 0.5 if role == "embed" and self.spec.scalars.embed_root else float(value)

    def prefix(self, layer: int) -> str:
        return self.spec.block.format(i=layer)

    def full(self, layer: int, name: str) -> str:
        """`model.layers.3` + `self_attn.q_proj` -> `model.layers.3.self_attn.q_proj`."""
        return f"{self.prefix(layer)}.{name}"

    def module(self, name: str) -> str:
        """Where transformers keeps what the description calls `name` (a full or relative name)."""
        if self.wrapper is not None:
            name = self.wrapper.module(name)
        memory = self.spec.experts.memory if self.spec.experts is not None else None
        return name if memory is None else _segment(name, *memory)

    def stored(self, module: str) -> str:
        """The inverse of `module`, which also understands the names that files use."""
        if self.wrapper is not None:
            module = self.wrapper.described(module)
        memory = self.spec.experts.memory if self.spec.experts is not None else None
        return module if memory is None else _segment(module, memory[1], memory[0])

    def written(self, name: str) -> str:
        """What dfq calls tensor `name` of the description in the files that it writes."""
        return name if self.wrapper is None else self.wrapper.module(name)

    def is_outside(self, name: str) -> bool:
        """Whether a tensor belongs to what surrounds the language model."""
        return self.wrapper is not None and self.wrapper.is_outside(name)

    def taps(self) -> tuple[Tap, ...]:
        """Groups of linears by what feeds them, in the order of computation."""
        fed = {name: norm.name for norm in self.spec.norms for name in norm.feeds}
        groups: dict[tuple[str, int | None], list[Linear]] = {}
        for linear in self.spec.linears:
            groups.setdefault((fed.get(linear.name, linear.name), linear.expert), []).append(linear)
        return tuple(Tap(group[0].name, tuple(group), group[0].reads) for group in groups.values())

    def linears(self) -> Iterator[tuple[int, Linear, str]]:
        """Every block linear as (layer, declaration, full module name)."""
        for layer in range(self.n_layers):
            for linear in self.spec.linears:
                yield layer, linear, self.full(layer, linear.name)

    def shape(self, linear: Linear) -> tuple[int, int]:
        return self.sizes[linear.rows], self.sizes[linear.cols]

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes that every checkpoint of this architecture has (biases are optional)."""
        spec, hidden = self.spec, self.hidden
        found: dict[str, tuple[int, ...]] = {f"{spec.embed}.weight": (self.sizes["vocab"], hidden)}
        for layer in range(self.n_layers):
            for norm in spec.norms:
                found[self.full(layer, norm.name) + ".weight"] = (hidden,)
            for number, name in enumerate(spec.head_norms):
                size = spec.head_norm_sizes[number] if spec.head_norm_sizes else "head_dim"
                found[self.full(layer, name) + ".weight"] = (self.sizes[size],)
            for linear in (*spec.routers, *spec.linears):
                found[self.full(layer, linear.name) + ".weight"] = self.shape(linear)
        found[f"{spec.final_norm.name}.weight"] = (hidden,)
        if not self.tied:
            found[f"{spec.head.name}.weight"] = self.shape(spec.head)
        return found

    def check(self, checkpoint: Checkpoint) -> None:
        """Compare a checkpoint with the description: missing tensors, wrong shapes, tensors nobody described."""
        expected = self.tensors()
        for name, shape in expected.items():
            entry = checkpoint.entry(name)
            if entry.shape != shape:
                raise InputError(
                    f"{entry.file}: tensor {name}: shape {list(entry.shape)}, config.json needs {list(shape)}"
                )
            if not entry.dtype.is_floating_point:
                raise InputError(f"{entry.file}: tensor {name}: dtype {entry.dtype} is not a weight's; fetch it again")
        biases = {f"{name}.bias": self.sizes[linear.rows] for _, linear, name in self.linears()}
        biases[f"{self.spec.head.name}.bias"] = self.sizes["vocab"]
        head = f"{self.spec.head.name}.weight"
        for name, entry in checkpoint.entries.items():
            if name in expected or name.endswith("rotary_emb.inv_freq") or (name == head and self.tied):
                continue
            if self.is_outside(name):
                self._check_outside(name, entry)
                continue
            if name not in biases:
                raise InputError(
                    f"{entry.file}: tensor {name} is not part of a {self.spec.model_type} model; "
                    "is config.json the right one?"
                )
            if entry.shape != (biases[name],):
                raise InputError(f"{entry.file}: tensor {name}: shape {list(entry.shape)}, needs [{biases[name]}]")

    def _check_outside(self, name: str, entry: TensorEntry) -> None:
        assert self.wrapper is not None
        if not entry.dtype.is_floating_point:
            raise InputError(f"{entry.file}: tensor {name}: dtype {entry.dtype} is not a weight's; fetch it again")
        if not entry.shape:
            raise UnsupportedError(f"{entry.file}: tensor {name}: a single value, which dfq does not carry over yet")
        if self.wrapper.writes(name) and entry.shape[0] != self.hidden:
            raise InputError(
                f"{entry.file}: tensor {name}: shape {list(entry.shape)}, the language model is {self.hidden} wide"
            )


def _segment(name: str, old: str, new: str) -> str:
    """`name` with one of its segments between dots exchanged."""
    return ".".join(new if part == old else part for part in name.split("."))


def _size(config: dict[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None:
        value = default
    if type(value) is not int or not 0 < value < 2**31:
        raise InputError(f"config.json: {key} is {value!r}, a positive integer is needed")
    return value
