"""dfq draft train: a draft for a quantized target."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dfrot.draft.training.settings import LossWeights, TrainSettings
from dfrot.stages.draft.settings import DraftSettings
from dfrot_cli import show
from dfrot_cli.commands.draft.options import LOSS_WEIGHTS, OF_THE_DRAFT, data_options, draft_settings
from dfrot_cli.grouped_help import dfq_command
from dfrot_cli.help_sections import DRAFT_TRAIN
from dfrot_cli.launch import launched, shares_ranks
from dfrot_cli.models import model_folder
from dfrot_cli.options import Common, common, model_option, out_option, path_option
from dfrot_cli.plan import plan
from dfrot_cli.setting_options import options_of


@dfq_command("train", DRAFT_TRAIN)
@model_option
@data_options
@path_option("--features", metavar="F", text="Train on the result of dfq draft extract.")
@options_of(DraftSettings, only=OF_THE_DRAFT)
@options_of(TrainSettings, only=("epochs", "hours", "batch", "lr", "ttt_steps", "roots", "weight_decay", "evaluations"))
@options_of(LossWeights, only=tuple(LOSS_WEIGHTS), rename=LOSS_WEIGHTS)
@click.option("--shard", is_flag=True, help="Under torchrun: split draft and optimizer between processes (FSDP).")
@path_option("--tensorboard", metavar="DIR", text="Also write the history to this folder for TensorBoard.")
@out_option("Folder of the draft.")
@common
@shares_ranks
def command(
    model: str,
    out: Path,
    features: Path | None,
    common: Common,
    shard: bool,
    tensorboard: Path | None,
    **options: Any,
) -> None:
    """Train a draft on the features of exactly this target, quantizers and KV bits included.

    Under torchrun or accelerate launch every process computes its share of each step's samples, and with --shard holds
    its share of the draft's parameters, gradients and moments."""
    common.prepare()
    from dfrot.draft.training.tensorboard import tensorboard as log_to
    from dfrot.stages.draft.train import train

    settings = draft_settings(common, options)
    folder = model_folder(model)
    if common.plan:
        plan("draft train", {"model": folder, "features": features}, settings, out, common)
        return
    with launched(shard) as group:
        if group.rank:  # the first process reports for all
            train(folder, out, settings, features=features, group=group, **common.stage())
            return
        log = log_to(tensorboard) if tensorboard else None

        def report(record: dict[str, Any]) -> None:
            show.note(_progress(record))
            if log is not None:
                log(record)

        with show.progress() as progress:
            kept = {"features": features, "progress": progress, "report": report, "group": group, **common.stage()}
            evidence = train(folder, out, settings, **kept)
    show.as_json({"out": str(out), **evidence}) if common.json else _table(evidence, settings, out)


def _table(evidence: dict[str, Any], settings: DraftSettings, out: Path) -> None:
    columns = ("step", "simulated_tau", "held_out_kl", "held_out_agreement", "loss")
    rows = [[record.get(name) for name in columns] for record in evidence["history"]]
    show.table("held-out samples", ("step", "tau (simulated)", "KL by step", "agreement by step", "loss"), rows)
    if quantized := evidence.get("quantized"):
        numbers = {name: value for name, value in quantized.items() if not isinstance(value, list)}
        show.facts(f"the draft in {settings.quantize}", numbers)
    show.line(f"wrote {out}")


def _progress(record: dict[str, Any]) -> str:
    left = record["steps"] - record["step"]
    loss = f"loss {record['loss']:.3f}, " if "loss" in record else ""
    speed = f", {record['tokens_per_second']:,.0f} tokens/s" if record["tokens_per_second"] else ""
    tau = f"simulated acceptance length {record['simulated_tau']:.3f}"
    return f"step {record['step']}/{record['steps']}: {loss}{tau}{speed}{_eta(record, left)}"


def _eta(record: dict[str, Any], left: int) -> str:
    return f", eta {left * record['seconds_per_step']:.0f} s" if left and record.get("seconds_per_step") else ""
