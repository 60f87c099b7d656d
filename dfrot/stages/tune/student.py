"""The student of `dfq tune`: a packed checkpoint whose scales and norm gains learn."""

from __future__ import annotations

import torch

from dfrot.arch import describe
from dfrot.processor import fast_bfloat16
from dfrot.runtime.load import load_model
from dfrot.runtime.trainable import TrainableModel, halve_tables
from dfrot.stages.tune.plan import TunePlan


def load_student(plan: TunePlan) -> TrainableModel:
    """The packed checkpoint in float32, its head in bfloat16 where the processor multiplies that."""
    arch = describe(plan.student.config)
    stored = plan.student.entry(f"{arch.spec.final_norm.name}.weight").dtype
    student = TrainableModel(load_model(plan.student.path, dtype=torch.float32), arch, stored)
    if fast_bfloat16() and stored == torch.bfloat16:
        halve_tables(student.model)
    return student
