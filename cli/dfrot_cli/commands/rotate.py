"""dfq rotate: the same model in a basis without outliers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dfrot.ranks.single import Ranks
from dfrot.stages.rotate.settings import OUTPUTS, RotateSettings
from dfrot_cli import planned_costs, show
from dfrot_cli.grouped_help import dfq_command
from dfrot_cli.help_sections import ROTATE
from dfrot_cli.launch import ranked
from dfrot_cli.models import model_folder
from dfrot_cli.options import Common, common, dataset_option, model_option, out_option
from dfrot_cli.plan import plan
from dfrot_cli.setting_options import options_of, settings_from


@dfq_command("rotate", ROTATE)
@model_option
@dataset_option(RotateSettings)
@options_of(RotateSettings, skip=("dataset", "seed"))
@planned_costs.shared_options
@out_option("Folder of the rotated checkpoint.")
@common
@ranked
def command(model: str, out: Path, dataset: str | None, common: Common, ranks: Ranks, **options: Any) -> None:
    """Rotate a checkpoint so that it can be quantized to 4 bits.

    The model's function stays the same; this is checked before the result is published. R1 rotates the residual stream
    and R2 the values, both merged into the weights; R3 (queries and keys) and R4 (the MLP's inner activations) are
    Hadamard transforms at run time. Under torchrun or accelerate launch the processes share the work."""
    common.prepare()
    if common.plan or planned_costs.named(options):
        planned = settings_from(RotateSettings, dict(options), dataset=dataset or "wikitext2", seed=common.seed)
        if planned_costs.shown(model, {"rotate": planned}, options, common):
            return
    from dfrot.hub import default_dataset
    from dfrot.stages.rotate import run as rotate

    with ranks.first_goes_ahead():
        folder = model_folder(model)
    dataset = dataset or default_dataset(model, folder)
    settings = settings_from(RotateSettings, options, dataset=dataset, seed=common.seed)
    if common.plan:
        facts = rotate.plan(folder, settings)
        if not common.json:
            facts |= {name: f"none: {reason}" for name, reason in facts.pop("without").items()}
            facts = {name: value for name, value in facts.items() if value is not None}
        plan("rotate", {"model": folder, **facts}, settings, out, common)
        return
    with show.progress() as progress:
        evidence = rotate.rotate(folder, out, settings, progress=progress, ranks=ranks, **common.stage())
    show.resolved(evidence)
    peaks = ranks.peak_bytes()
    if common.json:
        show.as_json({"out": str(out), **evidence, **show.peaks_record(peaks)})
        return
    show.facts(str(out), _summary(evidence))
    show.peaks(peaks)


def _summary(evidence: dict[str, Any]) -> dict[str, Any]:
    rows: dict[str, Any] = {"method": evidence["request"]["settings"]["method"]}
    for name, reason in evidence.get("without", {}).items():
        rows[name] = f"none: {reason}"
    if massive := evidence.get("massive"):
        rows["massive tokens"] = f"{massive['massive']} of {massive['rows']} rows ({massive['rule']})"
        rows["their texts"] = " ".join(repr(token["text"]) for token in massive["tokens"][:6])
    refined = evidence.get("refinement", {})
    if refined.get("objective") == OUTPUTS:
        errors = dict(refined["curve"])
        rows["output error"] = f"{errors[0]:.4g} -> {errors[refined['best']]:.4g} of the outputs (held-out rows)"
    elif refined:
        rows["objective"] = f"{refined['objective_start']:.6g} -> {refined['objective']:.6g}"
        rows["massive error"] = f"{refined['massive_error_start']:.4g} -> {refined['massive_error']:.4g}"
        rows["common error"] = f"{refined['common_error_start']:.4g} -> {refined['common_error']:.4g}"
        rows["gamma, rounds"] = f"{refined['gamma']:.4g}, {refined['rounds']}"
    if learning := evidence.get("learning"):
        divergences = dict(learning["curve"])
        rows["divergence"] = f"{divergences[0]:.4g} -> {divergences[learning['best']]:.4g} nats per token, held out"
    if r1 := evidence.get("r1"):
        rows["orthogonality error"] = f"{r1['orthogonality_error']:.2g}"
    elif r2 := evidence.get("r2"):
        rows["orthogonality error"] = f"{r2['orthogonality_error']:.2g}"
    if gate := evidence.get("gate"):
        rows["gate"] = f"passed on {gate['tokens']} tokens"
    return rows
