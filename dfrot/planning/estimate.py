"""From amounts of work to hours, for one stage or a whole recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dfrot.errors import UnsupportedError
from dfrot.planning.calibrate import calibrate_cost
from dfrot.planning.evaluate import evaluate_cost
from dfrot.planning.machines import THIS, rates_of
from dfrot.planning.quantize import quantize_cost
from dfrot.planning.ranks import seconds_on
from dfrot.planning.rotate import rotate_cost, rotated_config
from dfrot.planning.this_machine import measure_rates
from dfrot.planning.unread import read_config, unread_checkpoint
from dfrot.planning.work import KINDS, StageCost
from dfrot.stages.calibrate.settings import CalibrateSettings
from dfrot.stages.evaluate.settings import PerplexitySettings
from dfrot.stages.quantize.settings import QuantizeSettings
from dfrot.stages.quantize.waiting import LEAST, allowed
from dfrot.stages.rotate.settings import RotateSettings


def stage_costs(config: dict[str, Any], where: str, stages: Mapping[str, Any]) -> tuple[list[StageCost], list[str]]:
    """The costs of stages that follow one another, and notes.

    config: of the model that the first one reads; where: how messages name it; stages: settings by stage name (rotate,
    calibrate, quantize, eval), in their order. Raises UnsupportedError for what a stage refuses."""
    checkpoint, arch, notes = unread_checkpoint(config, where)
    costs: list[StageCost] = []
    calibration, rotated = CalibrateSettings(), False
    packed: QuantizeSettings | None = None
    for name, settings in stages.items():
        if isinstance(settings, RotateSettings):
            cost, plan = rotate_cost(checkpoint, arch, settings)
            costs.append(cost)
            rotated = bool(plan.online)
            checkpoint, arch, _ = unread_checkpoint(_in_wrapper(config, rotated_config(plan)), where)
        elif isinstance(settings, CalibrateSettings):
            calibration = settings
            costs.append(calibrate_cost(checkpoint, arch, settings))
        elif isinstance(settings, QuantizeSettings):
            packed = settings
            costs.append(quantize_cost(checkpoint, arch, settings, calibration, rotated))
        elif isinstance(settings, PerplexitySettings):
            costs.append(evaluate_cost(checkpoint, arch, settings, packed))
        else:
            notes.append(f"{name} is not counted")
    return costs, notes


def _in_wrapper(config: dict[str, Any], language: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a VLM with another language model's, or that one."""
    return {**config, "text_config": language} if isinstance(config.get("text_config"), dict) else language


def estimate(
    config: Path, stages: Mapping[str, Any], on: str | None, ranks: int = 1, gigabits: float = 25.0
) -> dict[str, Any]:
    """The plan of costs as JSON.

    config: the model's config.json; on: a machine (`this` or one of `machines.MACHINES`), None without hours. ranks:
    processes with such a machine each, of which hours are simulated as well ("on_ranks" of every stage); gigabits: per
    second, of the wire of each.

    Returns {"config", "stages", "total", "machine", "rates", "notes"}: per stage disk_bytes, scratch_bytes,
    memory_bytes, flops, bytes_read, bytes_written, work by kind and, with a machine, seconds, hours and seconds by
    kind. Raises InputError for an unknown machine, UnsupportedError for what a stage refuses."""
    values = read_config(config)
    stages = {name: _with_memory(settings, on) for name, settings in stages.items()}
    costs, notes = stage_costs(values, str(config), stages)
    rates, machine = ({}, None) if on is None else _rates(on, unread_checkpoint(values, str(config))[1].hidden)
    if not costs:
        raise UnsupportedError("no stage whose cost is known; name rotate, calibrate, quantize or eval")
    rows = [cost.to_dict() | _times(cost, rates) for cost in costs]
    if rates and ranks > 1:
        for row, cost in zip(rows, costs):
            row["on_ranks"] = {"ranks": ranks, "gigabits": gigabits, **seconds_on(cost, rates, ranks, gigabits)}
    keys = ("flops", "bytes_read", "bytes_written", *(("seconds", "hours") if rates else ()))
    total: dict[str, Any] = {key: sum(row[key] for row in rows) for key in keys}
    total |= {"disk_bytes": sum(cost.disk for cost in costs), "memory_bytes": max(cost.memory for cost in costs)}
    kept = 0
    peaks = []
    for cost in costs:
        peaks.append(kept + cost.disk + cost.scratch)
        kept += cost.disk
    total["peak_disk_bytes"] = max(peaks)
    return {
        "config": str(config),
        "stages": rows,
        "total": total,
        "machine": machine,
        "rates": {kind: {"per_second": rate, "unit": KINDS[kind].unit} for kind, rate in rates.items()},
        "notes": notes + [note for cost in costs for note in cost.notes],
    }


def _with_memory(settings: object, on: str | None) -> object:
    """Settings of a stage that say how much may wait: on this machine as a run would find it, elsewhere the least."""
    if not isinstance(settings, QuantizeSettings) or settings.memory is not None:
        return settings
    here = on is None or on.strip().lower() == THIS
    return replace(settings, memory=allowed(None) if here else LEAST)


def _rates(on: str, hidden: int) -> tuple[dict[str, float], str]:
    """Units per second by kind, for a model of this width, and the machine in words."""
    if on.strip().lower() != THIS:
        return rates_of(on)
    import torch

    return measure_rates(hidden), f"this machine, {torch.get_num_threads()} threads, timed just now"


def _times(cost: StageCost, rates: Mapping[str, float]) -> dict[str, Any]:
    """Seconds by kind, and their sum; empty without rates."""
    if not rates:
        return {}
    seconds = {kind: float(amount) / rates[kind] for kind, amount in cost.work.items()}
    total = sum(seconds.values())
    return {"seconds": total, "hours": total / 3600, "seconds_by_kind": seconds}
