"""The numbers of a training for TensorBoard, where that is installed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dfrot.errors import ResourceError


def scalars(record: dict[str, Any]) -> dict[str, float]:
    """Names and numbers of an evaluation's record. Lists (by step of the training-time test) give one number per
    element, `held_out_kl/0` and so on."""
    numbers: dict[str, float] = {}
    for name, value in record.items():
        if isinstance(value, (int, float)) and name not in ("step", "steps"):
            numbers[name] = float(value)
        elif isinstance(value, list) and all(isinstance(element, (int, float)) for element in value):
            numbers.update({f"{name}/{index}": float(element) for index, element in enumerate(value)})
    return numbers


def tensorboard(folder: Path) -> Callable[[dict[str, Any]], None]:
    """A `report` of training (trainer.py) that writes event files to `folder`, which may hold those of other runs.

    Raises ResourceError without the package tensorboard."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ResourceError(
            "`tensorboard` needs the package tensorboard, which is not installed: pip install tensorboard",
            field="tensorboard",
        ) from None
    writer: Any = SummaryWriter(str(folder))

    def report(record: dict[str, Any]) -> None:
        for name, value in scalars(record).items():
            writer.add_scalar(name, value, int(record["step"]))
        writer.flush()

    return report
