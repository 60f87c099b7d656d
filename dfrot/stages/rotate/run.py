"""`dfq rotate`: an ordinary checkpoint in, the same model in a basis without outliers out.

Order of work: everything that can be refused is looked at; R1 is made (and refined on one calibration sample, for
method dfrot); the weights are fused tensor by tensor, one journal entry per block; the gate compares the result
with the original on held-out tokens; the folder gets its name.
"""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfrot.arch import BoundArch, open_described, untie_config
from dfrot.checkpoint import Checkpoint
from dfrot.checkpoint_writer import SafetensorsWriter
from dfrot.data.text import Text, evaluation_windows, load_text
from dfrot.data.tokenizer import copy_tokenizer, encode, load_tokenizer
from dfrot.errors import GateError, InputError, UnsupportedError
from dfrot.files import require_free_space, write_json
from dfrot.quant.config import DfqConfig
from dfrot.rotation import rotation as rotations_file
from dfrot.rotation.fuse import Fuser, Rotations
from dfrot.rotation.hadamard import hadamard_plan, random_orthogonal, randomized_hadamard
from dfrot.rotation.online import OnlineRotations
from dfrot.rotation.refinement.massive_rule import MassiveRule
from dfrot.rotation.refinement.refine import refine
from dfrot.rotation.rotation import Rotation
from dfrot.runtime.block_runner import BlockRunner
from dfrot.stage_folder import Progress, Stage, open_stage, read_record, silent
from dfrot.stages.rotate.collect_rows import collect_rows
from dfrot.stages.rotate.gate import gate
from dfrot.stages.rotate.gate_images import gate_images
from dfrot.stages.rotate.settings import RotateSettings
from dfrot.vision import carry as vision
from dfrot.vision.llava_layout import has_vision_part, vision_digest
from dfrot_kernels.native import release_memory

KIND = "rotate"
GATE_TOKENS = 256
CHARACTERS = 12  # of text per token wanted, to begin with
SPARE = 16 << 20  # bytes beside weights and rotations: tokenizer, journal, evidence


@dataclass(frozen=True)
class _Inputs:
    """What was read and checked before any work."""

    checkpoint: Checkpoint
    arch: BoundArch
    settings: RotateSettings
    online: OnlineRotations
    calibration: Tensor | None
    held_out: Tensor
    decode: Any
    request: dict[str, Any]


def rotate(
    model: Path,
    out: Path,
    settings: RotateSettings,
    *,
    progress: Progress = silent,
    resume: bool | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Rotate checkpoint folder `model` into folder `out`; returns the evidence (also `out/stage.json`).

    Raises a DfqError before work starts for anything that cannot be done, GateError when the result is not the same
    model. `resume` and `overwrite` as in `open_stage`."""
    if out.resolve() == Path(model).resolve():
        raise InputError(f"{out}: is the model itself; choose another --out")
    inputs = _inputs(model, settings)
    with open_stage(out, KIND, inputs.request, resume=resume, overwrite=overwrite) as stage:
        if not stage.finished:
            try:
                _work(stage, inputs, progress)
            except GateError:
                stage.discard()  # wrong weights are nothing to resume from
                raise
    return read_record(out, KIND)


def plan(model: Path, settings: RotateSettings) -> dict[str, Any]:
    """What `rotate` would do, as JSON, without doing it. Raises what `rotate` would raise before work starts."""
    inputs = _inputs(model, settings)
    fuser = Fuser(inputs.checkpoint, inputs.arch, _shapes_only(inputs))
    return {
        "model_type": inputs.arch.spec.model_type,
        "method": settings.method,
        "bytes": sum(tensor.nbytes for tensor in fuser.plan()) + _rotation_bytes(inputs),
        "units": len(fuser.units()),
        "r1": hadamard_plan(inputs.arch.hidden).to_dict()
        if settings.method in ("dfrot", "hadamard") and _turns(inputs)
        else None,
        "without": _without(inputs),
        "online": inputs.online.to_dict(),
        "calibration_tokens": 0 if inputs.calibration is None else inputs.calibration.numel(),
        "gate_tokens": inputs.held_out.numel() if _gated(settings) else 0,
    }


def _gated(settings: RotateSettings) -> bool:
    return settings.gate and settings.method != "none"


def _inputs(model: Path, settings: RotateSettings) -> _Inputs:
    checkpoint, arch = open_described(model)
    where = str(checkpoint.path / "config.json")
    if DfqConfig.of(checkpoint.config, where) is not None:
        raise UnsupportedError(f"{where}: is rotated (or quantized) by dfq already; start from the original checkpoint")
    online = OnlineRotations()
    if settings.method != "none":
        if settings.method != "hadamard" and (reason := arch.spec.refuses("residual")):
            raise UnsupportedError(
                f"{where}: {reason}; --method {settings.method} is about R1: take --method hadamard, which gives this "
                "model R2, R3 and R4"
            )
        if settings.online:
            r4 = hadamard_plan(arch.intermediate, settings.r4_block)
            online = OnlineRotations(r3=hadamard_plan(arch.head_dim), r4=r4)
    calibration, decode, source = None, None, None
    generator = torch.Generator().manual_seed(settings.seed)
    held_out = torch.randint(0, arch.sizes["vocab"], (1, GATE_TOKENS), generator=generator)
    if settings.dataset is not None and (settings.method == "dfrot" or _gated(settings)):
        tokenizer = load_tokenizer(checkpoint.path)
        source = {"name": settings.dataset}
        if settings.method == "dfrot":
            train = load_text(settings.dataset, "train")
            source["train"] = train.digest
            calibration = text_window(train, tokenizer, settings.seqlen, settings.seed)
            decode = tokenizer.decode
        if _gated(settings):
            test = load_text(settings.dataset, "test")
            source["test"] = test.digest
            held_out = text_window(test, tokenizer, GATE_TOKENS, None)
        for ids in (calibration, held_out):
            if ids is not None and int(ids.max()) >= arch.sizes["vocab"]:
                raise InputError(
                    f"{checkpoint.path}: the tokenizer makes id {int(ids.max())}, the vocabulary has "
                    f"{arch.sizes['vocab']} entries; copy the tokenizer of this model"
                )
    request = {"source": checkpoint.digest(), "settings": asdict(settings), "dataset": source}
    if has_vision_part(checkpoint.path):
        request["vision"] = vision_digest(checkpoint.path)
    return _Inputs(checkpoint, arch, settings, online, calibration, held_out, decode, request)


def text_window(text: Text, tokenizer: Any, seqlen: int, seed: int | None) -> Tensor:
    """One window int64 [1, seqlen] from a seeded line of the text, or from its start; begins with the tokenizer's BOS.

    Only the stretch that is needed is tokenised: a whole train split takes a gigabyte and most of the run."""
    length = CHARACTERS * seqlen
    start = 0 if seed is None else random.Random(seed).randint(0, max(0, len(text.text) - length))
    start = text.text.rfind("\n", 0, start) + 1
    ids = encode(tokenizer, text.text[start : start + length])
    while len(ids) < seqlen and length < len(text.text):
        start, length = max(0, start - length), 2 * length
        ids = encode(tokenizer, text.text[start : start + length])
    if seed is None:
        seqlen = min(seqlen, max(2, len(ids)))  # the gate takes what there is
    return evaluation_windows(ids, seqlen)[:1]


def _shapes_only(inputs: _Inputs) -> Rotations:
    if inputs.settings.method == "none":
        return Rotations()
    hidden = inputs.arch.hidden
    r1 = torch.empty(1, dtype=torch.float64).expand(hidden, hidden) if _turns(inputs) else None
    return Rotations(r1=r1, r4=inputs.online.r4)


def _turns(inputs: _Inputs) -> bool:
    """Whether the residual gets an R1."""
    return inputs.settings.method != "none" and inputs.arch.spec.refuses("residual") is None


def _without(inputs: _Inputs) -> dict[str, str]:
    """Rotations that this architecture cannot have, and why."""
    reason = inputs.arch.spec.refuses("residual")
    return {"R1": reason} if reason is not None and inputs.settings.method != "none" else {}


def _rotation_bytes(inputs: _Inputs) -> int:
    arch = inputs.arch
    r1 = arch.hidden**2 if _turns(inputs) else 0
    return 0 if inputs.settings.method == "none" else 8 * (r1 + arch.n_layers * arch.head_dim**2)


def _work(stage: Stage, inputs: _Inputs, progress: Progress) -> None:
    checkpoint, settings = inputs.checkpoint, inputs.settings
    fuser = Fuser(checkpoint, inputs.arch, _shapes_only(inputs))
    there = sum(path.stat().st_blocks * 512 for path in stage.folder.iterdir() if path.is_file())
    size = sum(tensor.nbytes for tensor in fuser.plan())
    require_free_space(stage.folder, size + _rotation_bytes(inputs) + SPARE - there)
    evidence: dict[str, Any] = {"online": inputs.online.to_dict()}
    if without := _without(inputs):
        evidence["without"] = without
    rotations = Rotations()
    if settings.method != "none":
        rotations, made = _rotations(stage, inputs, progress)
        evidence |= made
    fuser = Fuser(checkpoint, inputs.arch, rotations)
    writer = SafetensorsWriter(stage.folder, fuser.plan(), stored=inputs.arch.written)
    units = fuser.units()
    for number, (unit, names) in enumerate(units.items()):
        progress("rotate", number, len(units))
        if not stage.done(unit):
            for name in names:
                fuser.write(name, writer)
            writer.sync()
            stage.mark(unit)
    progress("rotate", len(units), len(units))
    _describe(stage.folder, inputs)
    if has_vision_part(checkpoint.path):
        vision.rotate_vision_part(checkpoint.path, stage.folder, turned=rotations.r1 is not None)
    if _gated(settings):
        original = BlockRunner(checkpoint, inputs.arch)
        result = BlockRunner(*open_described(stage.folder))
        seen = gate_images(original, result) if has_vision_part(checkpoint.path) else None
        evidence["gate"] = gate(original, result, inputs.held_out, rotations.r1, seen, progress=progress)
        evidence["gate"]["source"] = settings.dataset or "random ids"
    evidence["weights"] = Checkpoint.open(stage.folder).digest()
    stage.publish(evidence)


def _rotations(stage: Stage, inputs: _Inputs, progress: Progress) -> tuple[Rotations, dict[str, Any]]:
    """R1 and R2, made or found in the stage, and the evidence of how."""
    settings, arch = inputs.settings, inputs.arch
    file = stage.folder / rotations_file.ROTATION_FILE
    if not stage.done("rotation"):
        report: dict[str, Any] = {}
        made: dict[str, Rotation] = {}
        if _turns(inputs):
            if settings.method == "dfrot":
                matrix, report = _refined(inputs, progress)
            else:
                make = random_orthogonal if settings.method == "orthogonal" else randomized_hadamard
                matrix = make(arch.hidden, settings.seed)
            made["R1"] = Rotation(matrix, settings.method, settings.seed)
            report["r1"] = _account(made["R1"], arch.hidden)
        per_head = [randomized_hadamard(arch.head_dim, (settings.seed, 1 + layer)) for layer in range(arch.n_layers)]
        made["R2"] = Rotation(torch.stack(per_head), "hadamard", settings.seed)
        report["r2"] = _account(made["R2"], arch.head_dim)
        rotations_file.save_rotations(file, made)
        stage.mark("rotation", report)
    found = rotations_file.load_rotations(file)
    r1 = found["R1"].matrix if "R1" in found else None
    return Rotations(r1, found["R2"].matrix, inputs.online.r4), stage.recall("rotation")


def _account(rotation: Rotation, size: int) -> dict[str, Any]:
    """Refuses what is not orthogonal. `block` below `size`: no Hadamard matrix of full width is known."""
    block = size if rotation.kind == "orthogonal" else hadamard_plan(size).block
    return {
        "kind": rotation.kind,
        "seed": rotation.seed,
        "size": size,
        "block": block,
        "orthogonality_error": rotation.require_orthogonal(),
    }


def _refined(inputs: _Inputs, progress: Progress) -> tuple[Tensor, dict[str, Any]]:
    """DFRot's R1: rows of one calibration sample, then the refinement from a randomised Hadamard."""
    assert inputs.calibration is not None
    settings = inputs.settings
    runner = BlockRunner(inputs.checkpoint, inputs.arch)
    rule = MassiveRule.parse(settings.massive_rule)
    features = collect_rows(runner, inputs.calibration, seed=settings.seed, rule=rule, progress=progress)
    release_memory()
    start = randomized_hadamard(inputs.arch.hidden, settings.seed)
    result = refine(features, start, settings.refinement(), progress=progress)
    report = {
        "massive": features.report(lambda token: str(inputs.decode([token]))),
        "refinement": {
            "curve": result.curve,
            "accepted": result.accepted,
            "best": result.best,
            "orthogonality_error": result.orthogonality_error,
            **result.stats,
        },
    }
    return result.matrix, report


def _describe(folder: Path, inputs: _Inputs) -> None:
    """config.json, and the tokenizer's files as they are."""
    config = {key: value for key, value in inputs.checkpoint.config.items() if key != "auto_map"}  # no remote code
    if not {"dtype", "torch_dtype"} & set(config):
        embed = inputs.checkpoint.entry(f"{inputs.arch.spec.embed}.weight")
        config["dtype"] = str(embed.dtype).removeprefix("torch.")
    if _turns(inputs):
        config = untie_config(config)  # R1 gives the head a weight of its own
    if inputs.online:
        config["quantization_config"] = DfqConfig(online=inputs.online).to_dict()
    write_json(folder / "config.json", config)
    copy_tokenizer(inputs.checkpoint.path, folder)
