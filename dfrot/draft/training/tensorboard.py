"""A training's numbers for TensorBoard, where that is installed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dfrot.errors import ResourceError


def scalars(record: dict[str, Any]) -> dict[str, float]:
    """Names and numbers of an evaluation; those by step of the training-time test one by one (`held_out_kl/0`)."""
    found: dict[str, float] = {}
    for name, value in record.items():
        if isinstance(value, (int, float)) and name not in ("step", "steps"):
            found[name] = float(value)
        elif isinstance(value, list) and all(isinstance(one, (int, float)) for one in value):
            found.update({f"{name}/{place}": float(one) for place, one in enumerate(value)})
    return found


def tensorboard(folder: Path) -> Callable[[dict[str, Any]], None]:
    """A `report` of training (dfrot/draft/training/trainer.py) that writes event files to `folder`, which
    may hold other runs'. Raises ResourceError without the package tensorboard."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ResourceError(
            "--tensorboard needs tensorboard, which is not installed: pip install tensorboard"
        ) from None
    writer: Any = SummaryWriter(str(folder))

    def report(record: dict[str, Any]) -> None:
        for name, value in scalars(record).items():
            writer.add_scalar(name, value, int(record["step"]))
        writer.flush()

    return report
