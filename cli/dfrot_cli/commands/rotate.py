"""dfq rotate: a checkpoint in, the same model in a basis without outliers out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dfrot_cli import show
from dfrot_cli.options import Common, common, dataset_option, model_option, out_option, seqlen_option
from dfrot_cli.plan import plan


@click.command("rotate")
@model_option
@click.option(
    "--method",
    type=click.Choice(["dfrot", "hadamard", "orthogonal", "none"]),
    default="dfrot",
    show_default=True,
    help="dfrot refines a randomised Hadamard on one text sample.",
)
@dataset_option
@seqlen_option
@click.option("--gamma", default="auto", show_default=True, metavar="X", help="Weight of massive tokens; paper: 100.")
@click.option("--a-bits", type=click.IntRange(2, 8), default=4, show_default=True, help="Activation bits refined for.")
@click.option("--a-sym/--a-asym", default=False, show_default=True, help="Activation quantizer refined for.")
@click.option("--a-clip", type=click.FloatRange(0.1, 1.0), default=1.0, show_default=True, help="Its clip ratio.")
@click.option("--rounds", type=click.IntRange(0), default=100, show_default=True, help="Refinement rounds at most.")
@click.option("--massive-rule", default="energy", show_default=True, metavar="RULE", help="energy[:T], maxmedian, ...")
@click.option("--online/--no-online", default=True, show_default=True, help="R3 and R4; without: an ordinary model.")
@click.option("--r4-block", type=click.IntRange(1), help="Block of R4; default: the widest known.")
@click.option("--gate/--no-gate", default=True, show_default=True, help="Compare with the original before publishing.")
@out_option("Folder of the rotated checkpoint.")
@common
def command(model: str, out: Path, dataset: str | None, gamma: str, common: Common, **options: Any) -> None:
    """Rotate a checkpoint so that it survives 4 bits. The model's function stays the same, and that is checked."""
    common.prepare()
    from dfrot.errors import InputError
    from dfrot.hub import default_dataset, resolve_model
    from dfrot.stages.rotate import run as rotate
    from dfrot.stages.rotate.settings import RotateSettings

    try:
        weight = gamma if gamma == "auto" else float(gamma)
    except ValueError:
        raise InputError(f"--gamma {gamma}: 'auto' or a number is needed (paper: 100)") from None
    folder = resolve_model(model)
    dataset = dataset or default_dataset(model, folder)
    settings = RotateSettings(dataset=dataset, gamma=weight, seed=common.seed, **options)
    if common.plan:
        facts = rotate.plan(folder, settings)
        if not common.json:
            facts |= {name: f"none: {reason}" for name, reason in facts.pop("without").items()}
            facts = {name: value for name, value in facts.items() if value is not None}
        plan("rotate", {"model": folder, **facts}, settings, out, common)
        return
    with show.progress() as progress:
        evidence = rotate.rotate(folder, out, settings, progress=progress, **common.stage())
    show.as_json({"out": str(out), **evidence}) if common.json else show.facts(str(out), _summary(evidence))


def _summary(evidence: dict[str, Any]) -> dict[str, Any]:
    rows: dict[str, Any] = {"method": evidence["request"]["settings"]["method"]}
    for name, reason in evidence.get("without", {}).items():
        rows[name] = f"none: {reason}"
    if massive := evidence.get("massive"):
        rows["massive tokens"] = f"{massive['massive']} of {massive['rows']} rows ({massive['rule']})"
        rows["their texts"] = " ".join(repr(token["text"]) for token in massive["tokens"][:6])
    if refined := evidence.get("refinement"):
        rows["objective"] = f"{refined['objective_start']:.6g} -> {refined['objective']:.6g}"
        rows["massive error"] = f"{refined['massive_error_start']:.4g} -> {refined['massive_error']:.4g}"
        rows["common error"] = f"{refined['common_error_start']:.4g} -> {refined['common_error']:.4g}"
        rows["gamma, rounds"] = f"{refined['gamma']:.4g}, {refined['rounds']}"
    if r1 := evidence.get("r1"):
        rows["orthogonality error"] = f"{r1['orthogonality_error']:.2g}"
    elif r2 := evidence.get("r2"):
        rows["orthogonality error"] = f"{r2['orthogonality_error']:.2g}"
    if gate := evidence.get("gate"):
        rows["gate"] = f"passed on {gate['tokens']} tokens"
    return rows
