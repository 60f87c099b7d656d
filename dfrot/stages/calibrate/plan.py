"""What a calibration run will read and write, decided before any work."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from dfrot.arch import BoundArch
from dfrot.calib.calibration import file_stems, tap_widths, tokens_digest
from dfrot.calib.hidden_states import HiddenStates
from dfrot.checkpoint import Checkpoint
from dfrot.data.text import calibration_windows, dataset_label, load_text
from dfrot.data.tokenizer import encode, load_tokenizer, require_known_ids
from dfrot.inputs import open_described_model
from dfrot.runtime.transformers_reading import check_reading
from dfrot.stages.calibrate.settings import CalibrateSettings

TAP_BYTES = 8192  # of histogram, clip errors, moments and header per tap


@dataclass(frozen=True)
class CalibratePlan:
    """Everything that is read and decided before any work."""

    checkpoint: Checkpoint
    """The checkpoint to observe."""
    arch: BoundArch
    """Its architecture."""
    settings: CalibrateSettings
    """What was asked for."""
    tokens: Tensor
    """int64 [samples, seqlen]."""
    request: dict[str, Any]
    """Settings and digests of the inputs: what decides the bytes of the result."""

    @property
    def nbytes(self) -> int:
        """Bytes of the result and of the hidden states on the way."""
        return calibration_bytes(self.arch, self.tokens, self.settings.hessians)


def plan_calibration(model: Path, settings: CalibrateSettings) -> CalibratePlan:
    """Open the checkpoint `model` and draw its tokens. Raises InputError for a dataset that is too short."""
    checkpoint, arch = open_described_model(model)
    check_reading(checkpoint, arch)
    tokenizer = load_tokenizer(checkpoint.path)
    text = load_text(settings.dataset, "train", tokenizer)
    ids = encode(tokenizer, text.text)
    tokens = calibration_windows(ids, settings.samples, settings.seqlen, settings.seed)
    require_known_ids(tokens, arch.vocab_size, checkpoint.path)
    request = {
        "model": checkpoint.digest(),
        "tokens": tokens_digest(tokens),
        "text": text.digest,
        **text.rendered,
        "settings": {**asdict(settings), "dataset": dataset_label(settings.dataset)},
    }
    return CalibratePlan(checkpoint, arch, settings, tokens, request)


def calibration_bytes(arch: BoundArch, tokens: Tensor, hessians: bool) -> int:
    """Bytes of a calibration on `tokens` [samples, seqlen], and of the hidden states on the way (two blocks)."""
    hidden = 2 * HiddenStates.nbytes((*tokens.shape, arch.hidden))
    widths = [width for stem in file_stems(arch) for width in tap_widths(arch, stem).values()]
    return hidden + 8 * tokens.numel() + sum((4 * k * k if hessians else 0) + 4 * k + TAP_BYTES for k in widths)
