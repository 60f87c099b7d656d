"""The variants of a model in which only some parts are rounded, as data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dfrot.arch import BoundArch, Tap
from dfrot.quant.scheme import FULL, QuantScheme

FIRST, MASSIVE, COMMON = "first token", "massive tokens", "common tokens"
TOKEN_CLASSES = (FIRST, MASSIVE, COMMON)
"""Position 0; the other tokens with massive activations; all others."""
TOTAL, ACTIVATIONS, WEIGHTS, CACHE, ENDS, LAYERS, TOKENS = (
    "total",
    "activations",
    "weights",
    "cache",
    "embedding and head",
    "layer",
    "tokens",
)
"""Groups of variants, as the report shows them."""


@dataclass(frozen=True)
class Variant:
    """A model in which only some parts are rounded."""

    group: str
    """The table it stands in."""
    label: str
    """What is rounded."""
    inputs: frozenset[str] = frozenset()
    """Labels of taps whose inputs are rounded."""
    weights: frozenset[str] = frozenset()
    """Labels of taps whose weights are rounded."""
    keys: bool = False
    values: bool = False
    exact_bias: bool = False
    """Keys are rounded without the share of their bias, which is added exactly."""
    embedding: bool = False
    head_input: bool = False
    head_weight: bool = False
    layer: int | None = None
    """The only layer where blocks are rounded; None: all."""
    tokens: str | None = None
    """The only class of tokens whose inputs, keys and values are rounded; None: all."""

    def in_layer(self, layer: int) -> bool:
        """Whether block `layer` differs from the exact one."""
        blocks = self.inputs or self.weights or self.keys or self.values
        return bool(blocks) and self.layer in (None, layer)


def tap_label(tap: Tap) -> str:
    """A tap by the short names of its linears, the same for all experts: `q/k/v`, `o`, `gate/up`, `down`."""
    return "/".join(linear.name.rpartition(".")[2].removesuffix("_proj") for linear in tap.linears)


def all_variants(arch: BoundArch, scheme: QuantScheme, *, layers: str, classes: bool, key_bias: bool) -> list[Variant]:
    """Every variant of a model, those that a scheme leaves exact left out.

    layers: what of one layer at a time, as `SensitivitySettings.layers`; classes: token classes are known; key_bias:
    keys have a bias."""
    taps = list(dict.fromkeys(tap_label(tap) for tap in arch.taps()))
    variants = [*_parts(taps, scheme, key_bias), *(_token_classes(taps) if classes else ())]
    if layers != "none":
        variants += _by_layer(taps, arch.n_layers, layers == "inputs")
    return [variant for variant in variants if _rounds(variant, scheme)]


def _rounds(variant: Variant, scheme: QuantScheme) -> bool:
    """Whether a scheme rounds everything that a variant is about."""
    weights = variant.weights or variant.embedding or variant.head_weight
    return not (
        (weights and scheme.w_bits == FULL)
        or ((variant.inputs or variant.head_input) and scheme.a_bits == FULL)
        or ((variant.keys or variant.values) and scheme.kv_bits == FULL)
    )


def _parts(taps: list[str], scheme: QuantScheme, key_bias: bool) -> Iterator[Variant]:
    """One part in all layers."""
    every = frozenset(taps)
    weights, inputs, cache = scheme.w_bits != FULL, scheme.a_bits != FULL, scheme.kv_bits != FULL
    if weights + inputs + cache > 1:
        yield Variant(
            TOTAL, "everything", every if inputs else frozenset(), every if weights else frozenset(), cache, cache
        )
    yield Variant(TOTAL, "weights", weights=every)
    yield Variant(TOTAL, "activations", inputs=every)
    yield Variant(TOTAL, "KV cache", keys=True, values=True)
    for tap in taps:
        yield Variant(ACTIVATIONS, f"input of {tap}", inputs=frozenset([tap]))
    for tap in taps:
        yield Variant(WEIGHTS, f"weight of {tap}", weights=frozenset([tap]))
    yield Variant(CACHE, "keys", keys=True)
    if key_bias:
        yield Variant(CACHE, "keys, their bias exact", keys=True, exact_bias=True)
    yield Variant(CACHE, "values", values=True)
    yield Variant(ENDS, "embedding", embedding=True)
    yield Variant(ENDS, "weight of the head", head_weight=True)
    yield Variant(ENDS, "input of the head", head_input=True)


def _token_classes(taps: list[str]) -> Iterator[Variant]:
    """One class of tokens in all layers."""
    for tokens in TOKEN_CLASSES:
        yield Variant(TOKENS, f"activations of {tokens}", inputs=frozenset(taps), tokens=tokens)
    for tokens in TOKEN_CLASSES:
        yield Variant(TOKENS, f"KV cache of {tokens}", keys=True, values=True, tokens=tokens)


def _by_layer(taps: list[str], layers: int, inputs: bool) -> Iterator[Variant]:
    """One layer at a time. inputs: one input at a time in place of all activations."""
    every = frozenset(taps)
    for layer in range(layers):
        yield Variant(LAYERS, "weights", weights=every, layer=layer)
        for tap in taps if inputs else ():
            yield Variant(LAYERS, f"input of {tap}", inputs=frozenset([tap]), layer=layer)
        if not inputs:
            yield Variant(LAYERS, "activations", inputs=every, layer=layer)
        yield Variant(LAYERS, "keys", keys=True, layer=layer)
        yield Variant(LAYERS, "values", values=True, layer=layer)
