"""`dfq rotate`: an ordinary checkpoint in, the same model in a basis without outliers out.

Order of work: everything that can be refused is checked (`plan.py`); R1 and R2 are made, R1 refined on one calibration
sample for method dfrot; transforms are solved from a few windows; the weights are fused tensor by tensor, one journal
entry per block; the gate compares the result with the source on held-out tokens; the folder is published.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dfrot.arch import open_described, untie_config
from dfrot.checkpoint import Checkpoint
from dfrot.checkpoint_writer import SafetensorsWriter
from dfrot.data.tokenizer import copy_tokenizer
from dfrot.errors import GateError
from dfrot.files import allocated_bytes, require_free_space, write_json
from dfrot.lineage import source_record
from dfrot.progress import Progress, silent
from dfrot.quant.config import DfqConfig
from dfrot.ranks.shared_stage import open_shared_stage
from dfrot.ranks.single import SINGLE, Ranks
from dfrot.rotation.fuse import Fuser, Rotations
from dfrot.rotation.transforms import Transforms
from dfrot.runtime.block_runner import BlockRunner
from dfrot.runtime.transformers_model import compare_with_transformers
from dfrot.stage_folder import Stage, read_record, refuse_inputs
from dfrot.stages.rotate.gate import gate
from dfrot.stages.rotate.gate_images import gate_images
from dfrot.stages.rotate.make_rotations import make_rotations
from dfrot.stages.rotate.make_transforms import make_transforms
from dfrot.stages.rotate.plan import RotatePlan, plan_rotation
from dfrot.stages.rotate.settings import RotateSettings
from dfrot.vision import carry as vision
from dfrot.vision.llava_layout import has_vision_part

KIND = "rotate"
SPARE = 16 << 20  # bytes beside weights and rotations: tokenizer, journal, record


def rotate(
    model: Path,
    out: Path,
    settings: RotateSettings,
    *,
    progress: Progress = silent,
    ranks: Ranks = SINGLE,
    resume: bool | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Rotate checkpoint folder `model` into folder `out`; returns the record (also `out/stage.json`).

    ranks: processes that share the work, each calling this with the same arguments; the bytes do not depend on them.

    Raises a DfqError before work starts for anything that cannot be done, GateError when the result is not the same
    model. `resume` and `overwrite` as in `open_stage`."""
    refuse_inputs(out, Path(model))
    plan = plan_rotation(model, settings)
    with open_shared_stage(ranks, out, KIND, plan.request, resume, overwrite) as stage:
        if not stage.finished:
            try:
                _run(stage, plan, progress, ranks)
            except GateError:
                if ranks.first:
                    stage.discard()  # wrong weights are nothing to resume from
                raise
    return read_record(out, KIND)


def plan(model: Path, settings: RotateSettings) -> dict[str, Any]:
    """What `rotate` would do, as JSON, without doing it. Raises what `rotate` would raise before work starts."""
    return plan_rotation(model, settings).to_dict()


def _run(stage: Stage, plan: RotatePlan, progress: Progress, ranks: Ranks) -> None:
    checkpoint = plan.checkpoint
    if ranks.first:
        _require_space(stage, plan)
    if plan.settings.gate and ranks.first:
        compare_with_transformers(checkpoint, plan.arch, plan.windows.gate, progress)
    record: dict[str, Any] = {"online": plan.online.to_dict(), **checkpoint.resolution()}
    if plan.missing:
        record["without"] = plan.missing
    rotations = Rotations()
    if plan.settings.turns:
        rotations, report = make_rotations(stage, plan, progress, ranks)
        record |= report
    transforms, report = make_transforms(stage, plan, progress, ranks)
    record |= report
    _fuse(stage, plan, rotations, transforms, progress, ranks)
    if ranks.first:
        _write_config(stage.folder, plan)
        if has_vision_part(checkpoint.path):
            vision.rotate_vision_part(checkpoint.path, stage.folder, turned=rotations.r1 is not None)
    ranks.barrier()
    if plan.gated:
        source = BlockRunner(checkpoint, plan.arch)
        result = BlockRunner(*open_described(stage.folder))
        pictured = ranks.first and has_vision_part(checkpoint.path)
        images = gate_images(source, result) if pictured else None
        record["gate"] = gate(source, result, plan.windows.gate, rotations.r1, images, progress=progress, ranks=ranks)
        record["gate"]["source"] = plan.settings.dataset or "random ids"
    if ranks.first:
        record["weights"] = Checkpoint.open(stage.folder).digest()
    stage.publish({**record, **source_record(checkpoint.path)})


def _require_space(stage: Stage, plan: RotatePlan) -> None:
    """Raise ResourceError when the disk cannot take what is still to be written."""
    weights = sum(tensor.nbytes for tensor in plan.layout().plan())
    require_free_space(stage.folder, weights + plan.rotation_bytes + SPARE - allocated_bytes(stage.folder))


def _fuse(
    stage: Stage, plan: RotatePlan, rotations: Rotations, transforms: Transforms, progress: Progress, ranks: Ranks
) -> None:
    """Write the weights, each unit by one rank, those of an interrupted run taken over."""
    fuser = Fuser(plan.checkpoint, plan.arch, rotations, transforms)
    with ranks.first_goes_ahead():
        writer = SafetensorsWriter(stage.folder, fuser.plan(), stored=plan.arch.written, prepare=ranks.first)
    units = fuser.units()
    waiting = [unit for unit in units if not stage.done(unit)]
    for begin in range(0, len(waiting), ranks.size):
        progress("rotate", len(units) - len(waiting) + begin, len(units))
        batch = waiting[begin : begin + ranks.size]
        for unit in batch[ranks.rank : ranks.rank + 1]:
            for name in units[unit]:
                fuser.write(name, writer)
            writer.sync()
        for unit in batch:
            stage.mark(unit)
    progress("rotate", len(units), len(units))


def _write_config(folder: Path, plan: RotatePlan) -> None:
    """Write config.json, and copy the tokenizer's files."""
    checkpoint = plan.checkpoint
    config = {key: value for key, value in checkpoint.config.items() if key != "auto_map"}  # no remote code
    if not {"dtype", "torch_dtype"} & set(config):
        embed = checkpoint.entry(f"{plan.arch.spec.embed}.weight")
        config["dtype"] = str(embed.dtype).removeprefix("torch.")
    if plan.uses_r1:
        config = untie_config(config)  # R1 gives the head a weight of its own
    if plan.adds_biases:
        config[plan.arch.spec.attention_bias_key] = True
    if plan.online:
        config["quantization_config"] = DfqConfig(online=plan.online).to_dict()
    write_json(folder / "config.json", config)
    copy_tokenizer(checkpoint.path, folder)
