"""The tokens that `dfq rotate` computes from: drawn once, before any work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dfrot.arch import BoundArch
from dfrot.checkpoint import Checkpoint
from dfrot.data.text import load_text
from dfrot.data.text_window import text_window
from dfrot.data.tokenizer import load_tokenizer, require_known_ids
from dfrot.stages.rotate.settings import RotateSettings
from dfrot.stages.tune.plan import tuning_windows
from dfrot.stages.tune.settings import TuneSettings

GATE_TOKENS = 256
LEARN_RATE = 4e-4  # of Adam at its peak, on the entries of a skew-symmetric matrix: larger ones turn R1 at random
LEARN_HELD_OUT = 16  # windows: less text judges a rotation by chance


@dataclass(frozen=True)
class Learning:
    """What R1 is learned on."""

    settings: TuneSettings
    """Steps, windows, rate."""
    tokens: Tensor
    """int64 [held_out + steps * batch, seqlen]: the held-out windows first."""


@dataclass(frozen=True)
class RotateWindows:
    """Windows of a text, as far as the settings ask for them."""

    gate: Tensor
    """int64 [1, S]: held-out tokens, or seeded random ids."""
    rows: Tensor | None = None
    """int64 [1, seqlen]: the sample of norm outputs; None when R1 is neither refined nor aligned."""
    moments: Tensor | None = None
    """int64 [windows, seqlen]: what transforms, and R1 for objective outputs, are computed from; None without."""
    learning: Learning | None = None
    """What R1 is learned on; None where it is not."""
    decode: Callable[[list[int]], str] | None = None
    """Token ids -> text, for the report on massive tokens; None without a sample."""
    source: dict[str, Any] | None = None
    """Name and digests of the text; None without one."""


def draw_windows(checkpoint: Checkpoint, arch: BoundArch, settings: RotateSettings, transforms: bool) -> RotateWindows:
    """The windows for decided `settings`. transforms: whether there are any.

    Raises InputError for a dataset or a tokenizer that does not serve."""
    generator = torch.Generator().manual_seed(settings.seed)
    gate = torch.randint(0, arch.vocab_size, (1, GATE_TOKENS), generator=generator)
    gated = settings.gate and settings.method != "none"
    samples_rows = settings.method == "dfrot" or bool(settings.align)
    takes_windows = transforms or settings.refines_outputs
    if settings.dataset is None or not (samples_rows or gated or takes_windows):
        return RotateWindows(gate)
    tokenizer = load_tokenizer(checkpoint.path)
    source: dict[str, Any] = {"name": settings.dataset}
    rows, moments, learning, decode = None, None, None, None
    if samples_rows or takes_windows:
        train = load_text(settings.dataset, "train", tokenizer)
        source |= {"train": train.digest, **train.rendered}
    if samples_rows:
        rows = text_window(train, tokenizer, settings.seqlen, settings.seed)
        decode = tokenizer.decode
    if takes_windows:
        seeds = range(settings.seed, settings.seed + settings.transform_windows)
        moments = torch.cat([text_window(train, tokenizer, settings.seqlen, seed) for seed in seeds])
    if settings.learn:
        learned = TuneSettings(
            settings.dataset, settings.learn, lr=LEARN_RATE, held_out=LEARN_HELD_OUT, seed=settings.seed
        )
        learning = Learning(learned, tuning_windows(train, tokenizer, learned))
    if gated:
        test = load_text(settings.dataset, "test", tokenizer)
        source |= {"test": test.digest, **test.rendered}
        gate = text_window(test, tokenizer, GATE_TOKENS, None)
    for window in (rows, moments, learning.tokens if learning else None, gate):
        if window is not None:
            require_known_ids(window, arch.vocab_size, checkpoint.path)
    return RotateWindows(gate, rows, moments, learning, decode, source)
