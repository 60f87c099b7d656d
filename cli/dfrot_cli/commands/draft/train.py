"""dfq draft train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dfrot_cli import show
from dfrot_cli.commands.draft.options import data_options, draft_settings
from dfrot_cli.launch import launched
from dfrot_cli.options import Common, common, model_option, out_option
from dfrot_cli.plan import plan


@click.command("train")
@model_option
@data_options
@click.option("--features", type=click.Path(path_type=Path), metavar="F", help="Result of dfq draft extract.")
@click.option("--cross/--no-cross", default=True, help="Leave the cross-attention out (ablation).")
@click.option("--intermediate", type=click.IntRange(1), help="Width of its MLPs; default: the target's.")
@click.option("--warm/--cold", default=True, help="Begin with the target's own first and last block.")
@click.option("--epochs", type=float, default=2.0, show_default=True)
@click.option("--batch", type=click.IntRange(1), default=4, show_default=True)
@click.option("--lr", type=float, default=1e-3, show_default=True)
@click.option("--ttt-steps", type=click.IntRange(0), default=3, show_default=True, help="Training-time test.")
@click.option("--weight-feature", type=float, default=0.1, show_default=True, help="Of the last feature's loss.")
@click.option("--weight-mid", type=float, default=0.1, show_default=True, help="Of the intermediate feature's loss.")
@click.option("--decay", "weight_decay_", type=float, default=0.8, show_default=True)
@click.option("--quantize-draft", "quantize", type=click.Choice(["w4", "w8"]), help="Round the trained draft.")
@click.option("--evaluations", type=click.IntRange(1), default=8, show_default=True)
@click.option("--shard", is_flag=True, help="Under torchrun: split draft and optimizer between processes (FSDP).")
@click.option("--tensorboard", type=click.Path(path_type=Path), metavar="DIR", help="Also log there for TensorBoard.")
@out_option("Folder of the draft.")
@common
def train(
    model: str,
    out: Path,
    features: Path | None,
    common: Common,
    weight_decay_: float,
    shard: bool,
    tensorboard: Path | None,
    **given: Any,
) -> None:
    """Train a draft on the features of exactly this target, quantizers and KV bits included.

    Under torchrun or accelerate launch every process computes its share of each step's samples, and with --shard holds
    its share of the draft's parameters, gradients and moments."""
    common.prepare()
    from dfrot.draft.training.tensorboard import tensorboard as log_to
    from dfrot.hub import resolve_model
    from dfrot.stages.draft.train import train as run

    given["quantize"] = given["quantize"] or ""
    names = ("epochs", "batch", "lr", "ttt_steps", "weight_feature", "weight_mid", "evaluations")
    options = {name: given.pop(name) for name in names} | {"weight_decay": weight_decay_}
    settings = draft_settings(common, given, options)
    folder = resolve_model(model)
    if common.plan:
        plan("draft train", {"model": folder, "features": features}, settings, out, common)
        return
    with launched(shard) as group:
        if group.rank:  # the first process speaks for all
            run(folder, out, settings, features=features, group=group, **common.stage())
            return
        log = log_to(tensorboard) if tensorboard else None

        def report(record: dict[str, Any]) -> None:
            _line(record)
            if log is not None:
                log(record)

        with show.progress() as progress:
            kept = {"features": features, "progress": progress, "report": report, "group": group, **common.stage()}
            evidence = run(folder, out, settings, **kept)
    if common.json:
        show.as_json({"out": str(out), **evidence})
        return
    columns = ("step", "simulated_tau", "held_out_kl", "held_out_agreement", "loss")
    rows = [[record.get(name) for name in columns] for record in evidence["history"]]
    show.table("held-out samples", ("step", "tau (simulated)", "KL by step", "agreement by step", "loss"), rows)
    if told := evidence.get("quantized"):
        numbers = {name: value for name, value in told.items() if not isinstance(value, list)}
        show.facts(f"the draft in {given['quantize']}", numbers)
    show.line(f"wrote {out}")


def _line(record: dict[str, Any]) -> None:
    left = record["steps"] - record["step"]
    loss = f"loss {record['loss']:.3f}, " if "loss" in record else ""
    speed = f", {record['tokens_per_second']:,.0f} tokens/s" if record["tokens_per_second"] else ""
    tau = f"simulated acceptance length {record['simulated_tau']:.3f}"
    show.note(f"step {record['step']}/{record['steps']}: {loss}{tau}{speed}{_eta(record, left)}")


def _eta(record: dict[str, Any], left: int) -> str:
    return f", eta {left * record['seconds_per_step']:.0f} s" if left and record.get("seconds_per_step") else ""
