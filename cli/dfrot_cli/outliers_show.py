"""The terminal summary of dfq outliers: one screen."""

from __future__ import annotations

from typing import Any

from dfrot_cli import show


def _short(state: str | None) -> str:
    """A place in the model in two words: `12 down_proj`."""
    if state is None:
        return "stays"
    parts = state.split(".")
    return " ".join([part for part in parts if part.isdigit()] + parts[-1:])


def summary(report: dict[str, Any]) -> None:
    """The report of one measured checkpoint."""
    model, data, massive = report["model"], report["data"], report["massive"]
    show.line(
        f"{model['name']} ({model['model_type']}, {model['kind']}): {data['windows']} x {data['seqlen']} tokens of "
        f"{data['dataset']}, BOS {data['bos']}"
    )
    rows = [
        (
            str(c["channel"]),
            c["value"],
            " ".join(repr(token["text"]) for token in c["tokens"][:4]),
            _short(c["created"]),
            _short(c["ends"]),
        )
        for c in massive["channels"][:8]
    ]
    title = f"massive activations: {len(massive['channels'])} channels"
    show.line(title)
    if rows:
        show.table("", ("channel", "value", "tokens", "created by", "ends at"), rows)
    for place in massive["created"][:3]:
        show.line(f"  {_short(place['where'])}: {_origins(place)}")
    if ablation := massive["ablation"]:
        outcome = "confirmed by ablation" if ablation["confirmed"] else "NOT confirmed by ablation"
        before, after = (show.cell(value) for value in ablation["perplexity"])
        show.line(f"  {outcome}; perplexity of that window without them {before} -> {after}")
    _channels(report)
    _attention(report)
    _errors(report)
    _recipe(report)


def _channels(report: dict[str, Any]) -> None:
    outliers = report["channel_outliers"]
    show.line(f"channel outliers: {len(outliers)}" + "".join(f"  {_channel(outlier)}" for outlier in outliers[:8]))
    if outliers:
        gain = sum(outlier["explained_by_gain"] for outlier in outliers) / len(outliers)
        show.line(f"  explained by the norm's gain: {gain:.0%}; query and key channels: {len(report['head_outliers'])}")


def _attention(report: dict[str, Any]) -> None:
    masses = [layer["sinks"]["mean_first_token"] for layer in report["layers"]]
    top = max(range(len(masses)), key=lambda i: masses[i])
    show.line(
        f"attention to the first token: {sum(masses) / len(masses):.1%} on average, {masses[top]:.1%} in layer {top}"
    )


def _errors(report: dict[str, Any]) -> None:
    methods = report["token_errors"]["methods"]
    show.table(
        "",
        ("4-bit error / norm of a token", "massive", "common"),
        [(name, errors["massive"], errors["common"]) for name, errors in methods.items()],
    )
    worst = report["by_kind"][:4]
    parts = "; ".join(f"{kind['what']} {_short(kind['part'])} {kind['error']:.3g}" for kind in worst)
    show.line(f"4-bit output error, worst parts: {parts}")


def _channel(outlier: dict[str, Any]) -> str:
    return f"{outlier['channel']} ({outlier['ratio']:.1f}x)"


def _origins(place: dict[str, Any]) -> str:
    if place["kind"] == "embedding":
        return "rows " + ", ".join(sorted({f"{origin['row']} {origin['token']!r}" for origin in place["origins"]}))
    weights = {
        f"weight [{origin['channel']}, {term['column']}] carries {term['share']:.0%}"
        for origin in place["origins"]
        for term in origin["terms"][:1]
    }
    return ", ".join(sorted(weights)[:4]) or "diffuse"


def _recipe(report: dict[str, Any]) -> None:
    for reason in report["recommendation"]["reasons"]:
        show.line(f"- {reason}")
    if measured := report["measured"]:
        rows: list[tuple[Any, ...]] = [("bf16", measured["bf16"], 1.0, None)]
        rows += [
            (name, result["perplexity"], result["ratio_to_bf16"], result["ratio_ci"])
            for name, result in measured["recipes"].items()
        ]
        settings = measured["settings"]
        title = f"{settings['scheme']} {settings['algorithm']}, {settings['windows']} windows of {settings['seqlen']}"
        show.line(f"perplexity, {title}")
        show.table("", ("recipe", "perplexity", "x bf16", "paired ratio to default"), rows)


def comparison(report: dict[str, Any]) -> None:
    """The report of two checkpoints side by side."""
    names = [f"{model['name']} ({model['kind']})" for model in report["models"]]
    show.table(f"outliers of {names[0]} and {names[1]}", ("", *names), [tuple(row) for row in report["rows"]])
