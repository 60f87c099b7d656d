"""A quantization recipe for one model, derived from its measurements, with a reason for each choice.

Whether the recipe helps is measured by the stage, not here."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

TOLERANCE = 1.005  # a costlier rotation is chosen when its error is this much smaller
SINK_MASS = 0.2  # mean attention on massive tokens from which they are kept in full precision
SINK_SHARE = 0.1  # or their share of the squared 4-bit error
MAX_SINKS = 8
OUTLYING = 4.0  # times the median output error from which an input stays in 16 bits


@dataclass(frozen=True)
class OutlierRecipe:
    """Settings of `dfq rotate` and `dfq quantize` that outliers decide."""

    rotation: str = "dfrot"
    """Method of the rotation; `none` for a checkpoint that is rotated already."""
    gamma: str = "auto"
    """Weight of massive tokens in the refinement: `auto` or a number."""
    sink_tokens: int = 0
    """Leading tokens kept in full precision."""
    keep: tuple[str, ...] = ("lm_head",)
    """Linears that stay in 16 bits."""
    a_clip: float = 1.0
    """Clip ratio of activations."""
    kv_clip: float = 1.0
    """Clip ratio of the KV cache."""
    reasons: tuple[str, ...] = field(default=(), compare=False)
    """One sentence per choice."""

    def to_dict(self) -> dict[str, Any]:
        """JSON."""
        return {**asdict(self), "keep": list(self.keep), "reasons": list(self.reasons)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> OutlierRecipe:
        """The recipe of `to_dict`, without its reasons."""
        settings = {key: value for key, value in values.items() if key != "reasons"}
        return cls(**{**settings, "keep": tuple(values["keep"])})


DEFAULT_RECIPE = OutlierRecipe()


def recommend_recipe(findings: dict[str, Any], ranked: list[dict[str, Any]], head: str, prefix: str) -> OutlierRecipe:
    """The recipe for measured outliers.

    findings: of `Measurement.run`; ranked: of `summary.rank_by_error`; head: name of the head; prefix: of a block's
    tensors, with `{i}` for the layer."""
    reasons: list[str] = []
    rotation = _rotation(findings["token_errors"]["methods"], reasons)
    sinks = _sink_tokens(findings, reasons)
    keep = _kept_linears(ranked, prefix, reasons)
    taps = [tap["activations"] for layer in findings["layers"] for tap in layer["taps"].values()]
    caches = [side for layer in findings["layers"] for side in layer["kv"].values()]
    a_clip, kv_clip = _clip(taps, "activation", reasons), _clip(caches, "KV", reasons)
    return OutlierRecipe(rotation, "auto", sinks, (head, *keep), a_clip, kv_clip, tuple(reasons))


def _kept_linears(ranked: list[dict[str, Any]], prefix: str, reasons: list[str]) -> list[str]:
    """down_proj linears whose input has an outlying 4-bit output error."""
    inputs = [row for row in ranked if row["what"] == "activations"]
    median_error = median(row["error"] for row in inputs)
    outlying = [row for row in inputs if row["error"] > OUTLYING * median_error]
    keep = [f"{prefix.format(i=row['layer'])}.{row['part']}" for row in outlying if "down" in row["part"]]
    if keep:
        worst = max(row["error"] for row in outlying)
        reasons.append(
            f"16-bit {len(keep)} down_proj: their output error reaches {worst / median_error:.1f} times the median"
        )
    else:
        reasons.append(f"down_proj stays at 4 bits: no input stands out by {OUTLYING:g} times the median error")
    return keep


def _clip(parts: list[dict[str, Any]], what: str, reasons: list[str]) -> float:
    """The median over parts of the ratio with the smallest squared error."""
    clip = float(median(part.get("hadamard", part["none"])["best_clip"] for part in parts))
    if clip < 1:
        reasons.append(f"{what} clip {clip:g}: the median over layers of the ratio with the smallest squared error")
    return clip


def _rotation(methods: dict[str, Any], reasons: list[str]) -> str:
    """The rotation with the smallest error of common tokens; among rotations within TOLERANCE, the refined one."""
    if "refined" not in methods:
        reasons.append("the checkpoint is rotated already")
        return "none"
    common = {name: errors["common"] for name, errors in methods.items()}
    best = min(common, key=lambda name: common[name])
    best = best if common["none"] > TOLERANCE * common[best] else "none"
    if best != "none":  # the refined one is better for massive tokens
        best = "refined" if common["refined"] <= TOLERANCE * common[best] else best
    text = ", ".join(f"{name} {_error_pair(errors)}" for name, errors in methods.items())
    reasons.append(f"rotation by error per token (massive, common): {text}")
    return {"refined": "dfrot"}.get(best, best)


def _error_pair(errors: dict[str, Any]) -> str:
    massive = "none" if errors["massive"] is None else f"{errors['massive']:.4f}"
    return f"{massive}, {errors['common']:.4f}"


def _sink_tokens(findings: dict[str, Any], reasons: list[str]) -> int:
    """How many leading positions carry massive tokens, where attention or the error depends on them."""
    positions = {position for channel in findings["massive"]["channels"] for position in channel["positions"]}
    leading = next(count for count in range(MAX_SINKS + 1) if count not in positions)
    layers = findings["layers"]
    masses = [sum(layer["sinks"]["massive"]) / max(len(layer["sinks"]["massive"]), 1) for layer in layers]
    mass = sum(masses) / len(masses)
    methods = findings["token_errors"]["methods"]
    share = methods.get("refined", methods["none"])["massive_share"]
    if not leading:
        reasons.append("no sink tokens: no massive activation on a leading position")
        return 0
    figures = f"massive tokens get {mass:.1%} of attention and {share:.1%} of the squared 4-bit error"
    if mass >= SINK_MASS or share >= SINK_SHARE:
        reasons.append(f"{leading} sink token{'s' if leading > 1 else ''} in full precision: {figures}")
        return leading
    reasons.append(f"no sink tokens: {figures}")
    return 0
