"""A recipe for this model, derived from its measurements, each choice with its reason. Whether it helps is measured."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

TOLERANCE = 1.005  # a rotation is preferred when it is this much better; else the cheaper one
SINK_MASS = 0.2  # mean attention on massive tokens from which they are worth full precision
SINK_SHARE = 0.1  # or their share of the squared 4-bit error
MOST_SINKS = 8
STANDS_OUT = 4.0  # times the median output error from which an input stays in 16 bits


@dataclass(frozen=True)
class OutlierRecipe:
    """rotation: of `dfq rotate`. sink_tokens, keep, a_clip, kv_clip: of the quantization. reasons: one sentence
    per choice."""

    rotation: str = "dfrot"
    gamma: str = "auto"
    sink_tokens: int = 0
    keep: tuple[str, ...] = ("lm_head",)
    a_clip: float = 1.0
    kv_clip: float = 1.0
    reasons: tuple[str, ...] = field(default=(), compare=False)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "keep": list(self.keep), "reasons": list(self.reasons)}


DEFAULT_RECIPE = OutlierRecipe()


def recommend_recipe(findings: dict[str, Any], ranked: list[dict[str, Any]], head: str, prefix: str) -> OutlierRecipe:
    """findings: of `Measurement.run`; ranked: of `summary.ranking`; head: the head's name; prefix: of a block, with
    `{i}`."""
    reasons: list[str] = []
    rotation = _rotation(findings["token_errors"]["methods"], reasons)
    sinks = _sinks(findings, reasons)
    inputs = [row for row in ranked if row["what"] == "activations"]
    middle = median(row["error"] for row in inputs)
    loud = [row for row in inputs if row["error"] > STANDS_OUT * middle]
    keep = [f"{prefix.format(i=row['layer'])}.{row['part']}" for row in loud if "down" in row["part"]]
    if keep:
        worst = max(row["error"] for row in loud)
        reasons.append(
            f"16-bit {len(keep)} down_proj: their output error reaches {worst / middle:.1f} times the median"
        )
    else:
        reasons.append(f"down_proj stays at 4 bits: no input stands out by {STANDS_OUT:g} times the median error")
    taps = [found["activations"] for layer in findings["layers"] for found in layer["taps"].values()]
    caches = [side for layer in findings["layers"] for side in layer["kv"].values()]
    a_clip, kv_clip = _clip(taps, "activation", reasons), _clip(caches, "KV", reasons)
    return OutlierRecipe(rotation, "auto", sinks, (head, *keep), a_clip, kv_clip, tuple(reasons))


def _clip(parts: list[dict[str, Any]], what: str, reasons: list[str]) -> float:
    """The median of the ratios that make the squared error of each part smallest."""
    clip = float(median(part.get("hadamard", part["none"])["best_clip"] for part in parts))
    if clip < 1:
        reasons.append(f"{what} clip {clip:g}: the median over layers of the ratio with the smallest squared error")
    return clip


def _rotation(methods: dict[str, Any], reasons: list[str]) -> str:
    if "refined" not in methods:
        reasons.append("the checkpoint is rotated already")
        return "none"
    common = {name: found["common"] for name, found in methods.items()}
    best = min(common, key=lambda name: common[name])
    best = best if common["none"] > TOLERANCE * common[best] else "none"
    if best != "none":  # among rotations massive tokens decide as well
        best = "refined" if common["refined"] <= TOLERANCE * common[best] else best
    text = ", ".join(f"{name} {_figures(found)}" for name, found in methods.items())
    reasons.append(f"rotation by error per token (massive, common): {text}")
    return {"refined": "dfrot"}.get(best, best)


def _figures(found: dict[str, Any]) -> str:
    massive = "none" if found["massive"] is None else f"{found['massive']:.4f}"
    return f"{massive}, {found['common']:.4f}"


def _sinks(findings: dict[str, Any], reasons: list[str]) -> int:
    """How many leading positions carry massive tokens, if attention or the error leans on them."""
    positions = {position for one in findings["massive"]["channels"] for position in one["positions"]}
    leading = next(count for count in range(MOST_SINKS + 1) if count not in positions)
    layers = findings["layers"]
    masses = [sum(layer["sinks"]["massive"]) / max(len(layer["sinks"]["massive"]), 1) for layer in layers]
    mass = sum(masses) / len(masses)
    methods = findings["token_errors"]["methods"]
    share = methods.get("refined", methods["none"])["massive_share"]
    if not leading:
        reasons.append("no sink tokens: no massive activation on a leading position")
        return 0
    told = f"massive tokens get {mass:.1%} of attention and {share:.1%} of the squared 4-bit error"
    if mass >= SINK_MASS or share >= SINK_SHARE:
        reasons.append(f"{leading} sink token{'s' if leading > 1 else ''} in full precision: {told}")
        return leading
    reasons.append(f"no sink tokens: {told}")
    return 0
