"""The cost of `dfq rotate`."""

from __future__ import annotations

import math

from dfrot.arch import BoundArch, Space, untie_config
from dfrot.checkpoint import Checkpoint
from dfrot.planning.blocks import BlockShapes
from dfrot.planning.work import StageCost
from dfrot.rotation.align import ROUNDS as ALIGN_ROUNDS
from dfrot.rotation.fuse import CHUNK
from dfrot.rotation.refinement.output_error import EVERY, HELD_OUT, HELD_OUT_ROWS, ROWS, SKETCH, TAPS
from dfrot.rotation.transforms import Transforms
from dfrot.runtime.transformers_model import TOKENS
from dfrot.stages.rotate import collect_outputs, collect_rows
from dfrot.stages.rotate.gate import LOGIT_TOKENS
from dfrot.stages.rotate.plan import RotatePlan, plan_unread
from dfrot.stages.rotate.settings import RotateSettings
from dfrot.stages.rotate.windows import GATE_TOKENS

EIGENVALUES = 25.0  # FLOPs of a symmetric eigendecomposition over K^3, at the rate of factors
ELEMENTWISE = 40.0  # values that rounding a row with gradients touches, per channel


def rotate_cost(checkpoint: Checkpoint, arch: BoundArch, settings: RotateSettings) -> tuple[StageCost, RotatePlan]:
    """What `rotate` costs with these settings, and what it decides. Raises UnsupportedError as `rotate` does."""
    plan = plan_unread(checkpoint, arch, settings, str(checkpoint.path / "config.json"))
    cost = StageCost("rotate")
    itemsize = next(iter(checkpoint.entries.values())).dtype.itemsize
    shapes = BlockShapes(arch, itemsize)
    weights = sum(tensor.nbytes for tensor in plan.layout().plan())
    maps = Transforms().shapes(arch)
    names = {name for transform, _ in plan.transforms for name in transform.fills}
    names |= {"norm"} if plan.settings.align else set()
    extra = plan.rotation_bytes + sum(8 * math.prod(maps[name]) for name in names if name in maps)
    cost.disk = weights + extra
    cost.add(write=cost.disk, start=1)
    if plan.settings.gate:
        shapes.run_blocks(cost, 2 * TOKENS, TOKENS, loads=2, plain=True)
        shapes.run_head(cost, 2 * TOKENS, plain=True)
    if plan.rotates and (plan.settings.method == "dfrot" or plan.settings.align):
        _refinement(cost, shapes, plan)
    if settings.learn:
        cost.notes.append("learning (learn) is not counted")
    if plan.transforms:
        tokens = plan.settings.transform_windows * plan.settings.seqlen
        with cost.shared(plan.settings.transform_windows, exchanges=arch.n_layers, loads=False):
            shapes.run_blocks(cost, tokens, plan.settings.seqlen, plain=True)
    with cost.shared(arch.n_layers + 2):
        _fuse(cost, shapes, plan)
    if plan.gated:
        _gate(cost, shapes)
    cost.parts["blocks"] = 2 * shapes.block_memory() + shapes.token_memory(plan.settings.seqlen)
    return cost, plan


def rotated_config(plan: RotatePlan) -> dict[str, object]:
    """config.json of the result, as far as sizes go."""
    return untie_config(plan.arch.config) if plan.uses_r1 else plan.arch.config


def _refinement(cost: StageCost, shapes: BlockShapes, plan: RotatePlan) -> None:
    """Rows of one sample; for objective outputs the outputs of some windows, and gradient steps on them."""
    settings, arch, d = plan.settings, plan.arch, plan.arch.hidden
    norms = len(arch.spec.rotated_norms) * arch.n_layers
    shapes.run_blocks(cost, settings.seqlen, settings.seqlen, plain=True)
    rows = min(settings.seqlen * norms, collect_rows.ROW_BYTES // (4 * d))
    cost.parts["rows"] = 4 * rows * d + shapes.block_memory() + shapes.token_memory(settings.seqlen)
    if settings.align:
        turn = 16.0 * norms**2 * d  # QR of a matrix d x 2 norms, and as much for products
        cost.add(factor64=ALIGN_ROUNDS * (turn + EIGENVALUES * (2.0 * norms) ** 3), products64=ALIGN_ROUNDS * turn)
        cost.add(products64=12.0 * norms * d * d)
    if not settings.refines_outputs:
        if settings.method == "dfrot":
            rounds = 2.0 * settings.rounds
            cost.add(factor64=(EIGENVALUES + 30) * d**3)
            with cost.shared(8 * rounds, sent=rounds * rows * d * 2.0, exchanges=rounds):  # eight tiles of a round
                cost.add(plain32=rounds * 6.0 * rows * d * d, elements=rounds * 10.0 * rows * d)
        return
    windows = settings.transform_windows
    kept = min(settings.seqlen, collect_outputs.ROW_BYTES // (2 * d * norms * windows)) * windows
    with cost.shared(windows, sent=2.0 * kept * norms * d / windows, exchanges=arch.n_layers, loads=False):
        shapes.run_blocks(cost, windows * settings.seqlen, settings.seqlen, plain=True)
    with cost.shared(norms):
        readers = _readers(cost, shapes)
    per_row = 12.0 * d * d + 8.0 * readers * d
    steps = settings.steps
    cost.add(plain32=steps * 8.0 * d**3, factor64=steps * 4.0 * d**3, products64=steps * 2.0 * norms * d * d)
    drawn = min(ROWS, 0.75 * kept)
    square = steps * 4.0 * d * d
    with cost.shared(TAPS, collected=square, sent=square, exchanges=2.0 * steps, passed_on=True):
        cost.add(plain32=steps * TAPS * drawn * per_row, elements=steps * TAPS * drawn * ELEMENTWISE * d)
    measured = min(HELD_OUT_ROWS, max(1.0, HELD_OUT * kept)) * norms * (steps // EVERY + 1)
    with cost.shared(norms, exchanges=steps / EVERY):
        cost.add(plain32=measured * (4.0 * d * d + 4.0 * readers * d), elements=measured * 12.0 * d)
    # the rows, and about as much again while they are collected (measured)
    cost.parts["refinement"] = 4 * kept * norms * d + 4 * norms * readers * d + 60 * d * d + shapes.block_memory()


def _readers(cost: StageCost, shapes: BlockShapes) -> int:
    """Rows of the matrix that stands for the readers of a norm's output; its making is counted."""
    arch, d, largest = shapes.arch, shapes.arch.hidden, 0
    for tap in arch.taps():
        if tap.reads != Space.RESIDUAL:
            continue
        rows = sum(arch.sizes[linear.rows] for linear in tap.linears)
        if rows <= SKETCH:
            largest = max(largest, rows)
        elif d <= SKETCH:
            cost.add(products64=arch.n_layers * 2.0 * rows * d * d, factor64=arch.n_layers * EIGENVALUES * d**3)
            largest = max(largest, d)
        else:
            cost.add(plain32=arch.n_layers * 2.0 * SKETCH * rows * d)
            largest = max(largest, SKETCH)
    return largest


def _fuse(cost: StageCost, shapes: BlockShapes, plan: RotatePlan) -> None:
    """Every weight times the rotations of both of its sides, in float64."""
    arch, d = plan.arch, plan.arch.hidden
    per_block = 0.0
    for linear in arch.spec.linears:
        rows, cols = arch.shape(linear)
        if plan.uses_r1 and linear.reads == Space.RESIDUAL:
            per_block += 2.0 * rows * cols * cols
        if plan.uses_r1 and linear.writes == Space.RESIDUAL:
            per_block += 2.0 * rows * rows * cols
        if plan.settings.turns and (linear.enters(Space.VALUE) or linear.reads == Space.VALUE):
            per_block += 2.0 * rows * cols * arch.head_dim
        if plan.online.r4 is not None and linear.reads == Space.MLP:
            per_block += 2.0 * rows * cols * math.log2(max(cols, 2))
    tables = 2.0 * 2.0 * shapes.embed * d if plan.uses_r1 else 0.0
    weights = arch.n_layers * shapes.weights + 2 * shapes.embed
    cost.add(products64=arch.n_layers * per_block + tables, load=weights, read=weights * shapes.source_itemsize)
    widest = max((math.prod(arch.shape(linear)) for linear in arch.spec.linears), default=0)
    cost.parts["fusing"] = shapes.source_itemsize * widest + 8 * CHUNK + plan.rotation_bytes + 8 * d * d


def _gate(cost: StageCost, shapes: BlockShapes) -> None:
    """The source once, the result twice over both inputs and once with jitter."""
    arch = shapes.arch
    shapes.run_blocks(cost, 4 * GATE_TOKENS, GATE_TOKENS, loads=2, plain=True)
    with cost.shared(arch.n_layers):
        cost.add(elements=2.0 * arch.n_layers * shapes.weights)  # the jitter
    cost.add(products64=arch.n_layers * 8.0 * GATE_TOKENS * arch.hidden**2)
    for _ in range(3):
        shapes.run_head(cost, LOGIT_TOKENS, plain=True)
    cost.add(elements=2.0 * shapes.embed, products64=2.0 * LOGIT_TOKENS * shapes.embed)
