"""The cost of `dfq calibrate`."""

from __future__ import annotations

from pathlib import Path

from dfrot.arch import BoundArch
from dfrot.calib.calibration import file_stems, tap_widths
from dfrot.calib.collect_stats import EXPERT_ROWS, SAMPLE_ROWS
from dfrot.calib.hidden_states import HiddenStates
from dfrot.calib.stats import BINS, CLIP_BITS, CLIP_RATIOS, MOMENTS
from dfrot.calib.taps import samples_per_chunk
from dfrot.checkpoint import Checkpoint
from dfrot.planning.blocks import BlockShapes
from dfrot.planning.work import StageCost
from dfrot.stages.calibrate.settings import CalibrateSettings

TRIANGLE = 0.5625  # of a Hessian's products that are computed: the upper block triangle of 8 blocks
CANDIDATES = len(CLIP_BITS) * len(CLIP_RATIOS) * 2  # grids that a sampled row is rounded on
CHARACTERS = {"wikitext2": 10_900_000, "stdlib": 8_800_000}
"""Of the train splits of datasets by name."""
TRAIN_FILES = ("wiki.train.raw", "wiki.train.tokens")
TEXT_MEMORY = 140  # bytes per character while a text becomes tokens
ROUNDING = 8.0  # times that rounding touches a value


def calibrate_cost(checkpoint: Checkpoint, arch: BoundArch, settings: CalibrateSettings) -> StageCost:
    """What `calibrate` costs with these settings."""
    cost, tokens = StageCost("calibrate"), settings.samples * settings.seqlen
    characters = text_characters(settings.dataset)
    cost.add(start=1, text=characters)
    cost.parts["text"] = TEXT_MEMORY * characters
    if not settings.statistics:
        cost.disk = 8 * tokens
        return cost
    hidden = HiddenStates.nbytes((settings.samples, settings.seqlen, arch.hidden))
    widths = [width for stem in file_stems(arch) for width in tap_widths(arch, stem).values()]
    cost.disk = 8 * tokens + sum(_tap_bytes(width, settings.hessians) for width in widths)
    cost.scratch = 2 * hidden
    shapes = BlockShapes(arch, next(iter(checkpoint.entries.values())).dtype.itemsize)
    cost.add(write=cost.disk)
    chunk = min(settings.samples, samples_per_chunk(arch, settings.seqlen))
    chunks = -(-settings.samples // chunk)
    widest = max(shapes.width(tap) for tap in arch.taps())
    products = TRIANGLE * 4.0 * widest**2 if settings.hessians else 0.0  # to the owner of the widest input
    with cost.shared(chunks, collected=arch.n_layers * products, exchanges=arch.n_layers, loads=False):
        shapes.run_blocks(cost, tokens, settings.seqlen)
        cost.add(write=(arch.n_layers + 1) * hidden)
        for tap in arch.taps():
            width, share = shapes.width(tap), shapes.share(tap.expert)
            cost.add(elements=arch.n_layers * width * 2.0 * tokens * share)
            if settings.hessians:
                cost.add(products32=arch.n_layers * TRIANGLE * 2.0 * tokens * share * width**2)
                cost.add(elements=arch.n_layers * chunks * TRIANGLE * width**2)
    cost.add(read=arch.n_layers * hidden)
    with cost.shared(len(arch.taps())):
        for tap in arch.taps():
            most = EXPERT_ROWS if tap.expert is not None else SAMPLE_ROWS
            sample = min(most, tokens * shapes.share(tap.expert))
            cost.add(elements=arch.n_layers * shapes.width(tap) * ROUNDING * CANDIDATES * sample)
    hessians = sum(shapes.width(tap) ** 2 for tap in arch.taps()) if settings.hessians else 0
    cost.parts["blocks"] = (
        shapes.block_memory() + shapes.token_memory(chunk * settings.seqlen) + 9 * hessians // 2 + widest**2 // 2
    )
    return cost


def text_characters(dataset: str) -> int:
    """About how many characters the train split of a dataset has: those of a file that is here, else by name."""
    path = Path(dataset)
    files = [path, *(path / name for name in TRAIN_FILES)]
    here = [file for file in files if file.is_file()]
    return here[0].stat().st_size if here else CHARACTERS.get(dataset, CHARACTERS["wikitext2"])


def _tap_bytes(width: int, hessians: bool) -> int:
    """Bytes of the statistics of a tap: count, channel maxima, histogram, clip errors, moments, Hessian."""
    errors = len(CLIP_BITS) * 2 * len(CLIP_RATIOS)
    return 8 * (1 + BINS + errors + len(MOMENTS)) + 4 * width + (4 * width**2 if hessians else 0)
