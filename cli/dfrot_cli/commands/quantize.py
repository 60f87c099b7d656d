"""dfq quantize: packed integers from a 16-bit, usually rotated, checkpoint."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dfrot.quant.scheme import QuantScheme
from dfrot.ranks.single import Ranks
from dfrot.stages.quantize.settings import QuantizeSettings
from dfrot_cli import planned_costs, show
from dfrot_cli.grouped_help import dfq_command
from dfrot_cli.help_sections import QUANTIZE
from dfrot_cli.launch import ranked
from dfrot_cli.models import model_folder
from dfrot_cli.options import Common, common, model_option, out_option, path_option
from dfrot_cli.plan import plan
from dfrot_cli.setting_options import options_of, settings_from

FALLBACKS = 8  # lines about linears that could only be rounded; a mixture of experts may have hundreds


@dfq_command("quantize", QUANTIZE)
@model_option
@path_option("--calibration", metavar="CAL", text="Result of dfq calibrate on this checkpoint; gptq needs one.")
@options_of(QuantizeSettings)
@options_of(QuantScheme, only=("kv_clip",))
@planned_costs.shared_options
@out_option("Folder of the quantized checkpoint.")
@common
@ranked
def command(
    model: str,
    calibration: Path | None,
    out: Path,
    scheme: QuantScheme,
    kv_clip: float,
    keep: tuple[str, ...],
    common: Common,
    ranks: Ranks,
    **options: Any,
) -> None:
    """Quantize weights to packed integers; activations and KV cache are quantized while the result runs."""
    common.prepare()
    from dfrot.stages.quantize.run import quantize

    kept = tuple(name for name in keep if name)  # --keep "" keeps nothing
    settings = settings_from(QuantizeSettings, options, scheme=replace(scheme, kv_clip=kv_clip), keep=kept)
    if planned_costs.shown(model, {"quantize": settings}, options, common):
        return
    with ranks.first_goes_ahead():
        folder = model_folder(model)
    if common.plan:
        shown = {**asdict(settings), "effort means": settings.meaning}
        if settings.budget is not None:
            shown["budget means"] = settings.budget_meaning
        plan("quantize", {"model": folder, "calibration": calibration}, shown, out, common)
        return
    with show.progress() as progress:
        evidence = quantize(folder, calibration, out, settings, progress=progress, ranks=ranks, **common.stage())
    show.resolved(evidence)
    peaks = ranks.peak_bytes()
    show.as_json({"out": str(out), **evidence, **show.peaks_record(peaks)}) if common.json else _table(evidence, out)
    if not common.json:
        show.peaks(peaks)


def _table(evidence: dict[str, Any], out: Path) -> None:
    linears, sizes = evidence["linears"], evidence["sizes"]
    of = "output" if any("output_error" in stats for stats in linears.values()) else "weight"
    show.hardest("linears", linears, f"{of}_error", f"squared, as a share of the {of}")
    show.notes([{"name": out, **evidence}])
    fallbacks = list(evidence["fallbacks"].items())
    for name, reason in fallbacks[:FALLBACKS]:
        show.note(f"{name}: rounded to nearest instead: {reason}")
    if len(fallbacks) > FALLBACKS:
        show.note(f"and {len(fallbacks) - FALLBACKS} more linears: see fallbacks in stage.json")
    if "budget" in evidence:
        _inputs(evidence["budget"])
    if "tuning" in evidence:
        history = [entry["divergence"] for entry in evidence["tuning"]["history"]]
        show.line(f"tuned: divergence {history[0]:.5f} -> {min(history):.5f} nats per token, held out")
    before, after, bits = (sizes[key] for key in ("source_bytes", "bytes", "bits_per_quantized_weight"))
    text = f"wrote {out}: {show.size(after)} (from {show.size(before)}, {before / after:.2f}x smaller)"
    show.line(f"{text}, {bits} bits per quantized weight")


def _inputs(budget: dict[str, Any]) -> None:
    """Which inputs a budget raised, and what they cost before and after."""
    rows = []
    for kind in dict.fromkeys(row["input"] for row in budget["inputs"]):
        own = [row for row in budget["inputs"] if row["input"] == kind]
        few, many = min(own[0]["costs"], key=int), max(own[0]["costs"], key=int)
        raised = [row["layer"] for row in own if str(row["bits"]) == many]
        before, after = (sum(row["costs"][bits or str(row["bits"])] for row in own) for bits in (few, ""))
        layers = " ".join(map(str, raised))
        rows.append((kind, f"{len(raised)} of {len(own)}", layers, before, after))
    columns = ("input", "in 8 bits", "of layers", "cost, nats per token", "with the budget")
    show.table(f"bits of activations: {budget['mean']} in the mean, at most {budget['bits']:g}", columns, rows)
