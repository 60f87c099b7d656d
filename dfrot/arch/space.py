"""Names of the spaces that tensors live in, and of the sizes that weights have.

A *space* is the basis of a tensor's last dimension; a rotation changes it. A *size* is a number of rows or columns,
which a checkpoint's `config.json` decides. Both are strings, so that they can be compared and written to JSON as such.
"""

from __future__ import annotations

from enum import Enum


class Space(str, Enum):
    """A basis in which a tensor lives."""

    RESIDUAL = "residual"
    """The stream between blocks, rotated by R1."""
    VALUE = "v"
    """The value heads, rotated by R2, one block per head."""
    QUERY_KEY = "qk"
    """The query and key heads. RoPE acts on them, so R3 can only act online."""
    MLP = "mlp"
    """The gated product that enters down_proj. A non-linearity acts before it, so R4 acts online."""
    ROUTER = "router"
    """The scores by which a mixture chooses its experts."""
    VOCAB = "vocab"
    """The logits."""
    SEVERAL = "several"
    """Of a linear that several were fused into: see `Linear.parts`."""

    __str__ = str.__str__


class Size(str, Enum):
    """A number of rows or columns: a key of `BoundArch.sizes`."""

    HIDDEN = "hidden"
    """Width of the residual stream."""
    QUERIES = "q"
    """All query heads side by side."""
    KEY_VALUES = "kv"
    """All key heads side by side, or all value heads."""
    INTERMEDIATE = "intermediate"
    """Width of the MLP, or of one expert."""
    VOCAB = "vocab"
    """Rows of the embedding and of the head."""
    HEAD_DIM = "head_dim"
    """One attention head."""
    EXPERTS = "experts"
    """Experts of a layer; 0 without a mixture."""
    FUSED_QKV = "qkv"
    """Query, key and value heads in one linear."""
    FUSED_GATE_UP = "gate_up"
    """Gate and up projection in one linear."""

    __str__ = str.__str__
