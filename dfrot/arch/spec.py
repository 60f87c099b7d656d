"""What a transformer architecture reads and writes, as data.

Every linear declares the space (`dfrot.arch.space.Space`) that it reads and the one that it writes, every norm the
linears that it feeds. Everything else, fusing, rotating, calibrating, quantizing, exporting, is derived from these
declarations: no other file knows a model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from dfrot.arch.space import Size, Space


class Part(NamedTuple):
    """Consecutive rows of a fused linear that write one space."""

    space: Space
    rows: Size
    activated: bool = False
    """As `Linear.activated`."""


@dataclass(frozen=True, kw_only=True)
class Linear:
    """One linear of a block: weight [rows, cols]."""

    name: str
    """Relative to the block, or to the expert."""
    reads: Space
    """The space of its input."""
    writes: Space
    """The space of its output."""
    rows: Size
    cols: Size
    parts: tuple[Part, ...] = ()
    """Of a linear that several were fused into: its blocks of rows, in order; `writes` is then Space.SEVERAL."""
    expert: int | None = None
    """The member of a mixture that it belongs to; None: every token passes it."""
    activated: bool = False
    """A non-linearity acts on its output: the gate of a gated MLP, whose rows cannot be scaled."""

    def enters(self, space: Space) -> bool:
        """Whether any of its rows write `space`."""
        return self.writes == space or space in {part.space for part in self.parts}


@dataclass(frozen=True)
class Norm:
    """A normalisation with a learned gain."""

    name: str
    """Relative to the block, or full for the final norm."""
    feeds: tuple[str, ...] = ()
    """The linears that read its output."""
    late: bool = False
    """Its gain lies between a residual writer and the residual add, where nothing can absorb it."""
    offset: float = 0.0
    """The stored weight is `gain - offset` (Gemma stores gain - 1)."""


@dataclass(frozen=True)
class Scalars:
    """Constants of `config.json` that multiply whole tensors, by their keys there ("": none). Rotations commute with
    all of them."""

    embed: str = ""
    """On embeddings."""
    residual: str = ""
    """On what a block adds to the residual stream."""
    attention: str = ""
    """On attention scores, in place of head_dim^-1/2."""
    logits: str = ""
    """Divides the logits."""
    embed_root: bool = False
    """Embeddings are multiplied by the square root of the constant."""
    logits_cap: str = ""
    """Logits x become cap * tanh(x / cap), where transformers' configuration has a cap by that name."""
    attention_cap: str = ""
    """The same for attention scores."""


@dataclass(frozen=True)
class MixtureSpec:
    """A mixture of gated MLPs in place of one; a router sends each token to a few of them."""

    container: str
    """The module that holds the experts: expert e is `container.e`."""
    linears: tuple[Linear, ...]
    """Those of one expert, named relative to it, gate before up."""
    router: Linear
    """Reads what the experts read; it is rotated with them and never quantized."""
    count: tuple[str, ...]
    """Keys of `config.json` for the number of experts: the first that is there counts."""
    width: str
    """The key of an expert's intermediate size."""
    memory: tuple[str, str] | None = None
    """(segment of a stored name, what transformers calls it in memory)."""
    merged: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Tensors that hold the weights of all experts, [experts, rows, cols], by transformers' name, with the linears
    whose rows follow one another in them: the layout of its memory, which it can also write."""

    def expanded(self, count: int) -> tuple[Linear, ...]:
        """The linears of all experts, expert by expert."""
        return tuple(
            replace(linear, name=f"{self.container}.{expert}.{linear.name}", expert=expert)
            for expert in range(count)
            for linear in self.linears
        )


@dataclass(frozen=True)
class ArchSpec:
    """A decoder architecture. Names inside a block are relative to `block.format(i=...)`."""

    model_type: str
    """As `config.json` names it."""
    embed: str
    """The module of the token embedding."""
    block: str
    """The module of block i, with `{i}` for its number."""
    norms: tuple[Norm, ...]
    """Norms on the residual stream, in order. Of a mixture: the norm that feeds the router feeds the experts too."""
    linears: tuple[Linear, ...]
    """Linears of a block, in order. Of a mixture: those outside the experts, until the number of experts is known."""
    final_norm: Norm
    head: Linear
    head_norms: tuple[str, ...] = ()
    """q and k norms inside attention, untouched by every rotation."""
    head_norm_sizes: tuple[Size, ...] = ()
    """The sizes of their gains; empty: head_dim."""
    requires: tuple[tuple[str, tuple[Any, ...], str], ...] = ()
    """(key of `config.json`, values that are supported, what other values mean)."""
    biases: tuple[tuple[str, str], ...] = ()
    """(linear of a block that may have a bias, key of `config.json` that gives it one; "": it always has one)."""
    tied_by_default: bool = False
    """Whether the head shares the embedding's weight where `config.json` does not say."""
    scalars: Scalars = Scalars()
    partial_rotary: bool = False
    """Whether the model class heeds `partial_rotary_factor`: RoPE then acts on that share of every head's channels."""
    experts: MixtureSpec | None = None
    """The mixture in place of the MLP, if any."""

    @property
    def rotated_norms(self) -> tuple[Norm, ...]:
        """The norms whose output R1 rotates: linears read it, and their gain can be absorbed."""
        return tuple(norm for norm in self.norms if norm.feeds and not norm.late)

    @property
    def routers(self) -> tuple[Linear, ...]:
        """Linears that stay in high precision: they decide which others run."""
        return (self.experts.router,) if self.experts is not None else ()

    @property
    def attention_bias_key(self) -> str:
        """The key of `config.json` that gives every linear of attention a bias; empty: one never has one, or a key of
        its own."""
        spaces = (Space.VALUE, Space.QUERY_KEY, Space.SEVERAL)
        attention = [linear.name for linear in self.linears if linear.reads in spaces or linear.writes in spaces]
        keys = {self.bias_switch(name) for name in attention}
        return (keys.pop() or "") if len(keys) == 1 else ""

    def bias_switch(self, linear: str) -> str | None:
        """The key of `config.json` that gives a linear of a block its bias; "" where it always has one, None where it
        never has."""
        return dict(self.biases).get(linear)

    def refuses(self, space: Space | str) -> str | None:
        """Why this architecture cannot have `space` rotated, or None."""
        late = [norm.name for norm in self.norms if norm.late]
        if space == Space.RESIDUAL and late:
            return (
                f"{self.model_type}: R1 cannot be fused: {late[0]} has a learned gain between a residual writer "
                "and the residual add, and a gain does not commute with a rotation"
            )
        return None

    def with_experts(self, count: int) -> ArchSpec:
        """The description with the linears of `count` experts written out."""
        mixture = self.experts
        if mixture is None:
            return self
        experts = mixture.expanded(count)
        readers = tuple(linear.name for linear in experts if linear.reads == Space.RESIDUAL)
        norms = tuple(
            replace(norm, feeds=(*norm.feeds, *readers)) if mixture.router.name in norm.feeds else norm
            for norm in self.norms
        )
        return replace(self, linears=(*self.linears, *experts), norms=norms)
