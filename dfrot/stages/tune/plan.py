"""What `dfq tune` will fit to what, decided before any work."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from dfrot.arch import BoundArch, describe
from dfrot.checkpoint import Checkpoint
from dfrot.data.text import Text, calibration_windows, dataset_label, load_text
from dfrot.data.tokenizer import encode, load_tokenizer
from dfrot.errors import InputError, MismatchError, UnsupportedError
from dfrot.quant.config import DfqConfig
from dfrot.quant.scheme import FULL, QuantScheme
from dfrot.runtime.load import check_folder
from dfrot.stages.tune.settings import TuneSettings
from dfrot.vision import carry as vision

# added to the seed: the windows of a calibration with the same seed are fitted already and would judge nothing
SEED_OFFSET = 1_000_003


@dataclass(frozen=True)
class TunePlan:
    """Everything that is read and decided before any work."""

    student: Checkpoint
    """The packed checkpoint."""
    scheme: QuantScheme
    """Its scheme."""
    teacher: Checkpoint
    """The 16-bit checkpoint."""
    settings: TuneSettings
    """What was asked for."""
    tokens: Tensor
    """int64 [held_out + steps * batch, seqlen]: the held-out windows first."""
    request: dict[str, Any]
    """Settings and digests of the inputs: what decides the bytes of the result."""

    @property
    def nbytes(self) -> int:
        """Bytes of the result: those of the packed checkpoint."""
        return sum(entry.end - entry.start for entry in self.student.entries.values())


def plan_tuning(model: Path, teacher: Path, settings: TuneSettings) -> TunePlan:
    """Open both checkpoints and draw the windows.

    Raises InputError for a model that is not packed, a teacher that is, or a text that is too short; UnsupportedError
    where gradients do not reach; MismatchError for models of other shapes."""
    student, scheme = _open_student(model)
    settings = settings.for_scheme(scheme)
    reference, config = check_folder(teacher)
    if config is not None and config.scheme is not None:
        raise InputError(
            f"{teacher}: is quantized itself; give the 16-bit checkpoint as `teacher`", field="teacher", file=teacher
        )
    if (other := _other_shape(describe(student.config), describe(reference.config))) is not None:
        raise MismatchError(f"{teacher}: {other} {model}; give the checkpoint that it was made from", file=teacher)
    tokenizer = load_tokenizer(student.path)
    text = load_text(settings.dataset, "train", tokenizer)
    request = {
        "model": student.digest(),
        "teacher": reference.digest(),
        "text": text.digest,
        **text.rendered,
        "settings": {**asdict(settings), "dataset": dataset_label(settings.dataset)},
    }
    return TunePlan(student, scheme, reference, settings, tuning_windows(text, tokenizer, settings), request)


def tuning_windows(text: Text, tokenizer: Any, settings: TuneSettings) -> Tensor:
    """int64 [held_out + steps * batch, seqlen]: windows of a text, the held-out ones first. Raises InputError where it
    is too short."""
    count = settings.steps * settings.batch + settings.held_out
    return calibration_windows(encode(tokenizer, text.text), count, settings.seqlen, settings.seed + SEED_OFFSET)


def _other_shape(student: BoundArch, teacher: BoundArch) -> str | None:
    """What shows that the student was not made from the teacher, up to the word "than"; None where nothing does."""
    if student.vocab_size != teacher.vocab_size:
        return "has another vocabulary than"
    return "has other shapes than" if _shape(student) != _shape(teacher) else None


def _shape(arch: BoundArch) -> tuple[Any, ...]:
    return arch.n_layers, arch.n_heads, arch.n_kv_heads, arch.head_dim, arch.sizes


def _open_student(model: Path) -> tuple[Checkpoint, QuantScheme]:
    """The packed checkpoint and its scheme, refused where gradients do not reach."""
    vision.refuse_vision_part(model, "the tuned checkpoint")
    checkpoint, config = check_folder(model)
    if config is None or config.scheme is None or config.fake:
        raise InputError(f"{model}: is no packed checkpoint; quantize first (not simulated)", file=model)
    if (reason := untunable(describe(checkpoint.config), config)) is not None:
        raise UnsupportedError(f"{model}: {reason} cannot be tuned yet; serve the checkpoint as it is", file=model)
    return checkpoint, config.scheme


def untunable(arch: BoundArch, config: DfqConfig) -> str | None:
    """What of a packed checkpoint gradients do not reach, in the plural; None where it can be tuned."""
    if arch.wrapper is not None or arch.spec.experts is not None:
        return "VLMs and mixtures of experts"
    if arch.spec.scalars.attention_cap:
        return "models with capped attention"
    if config.resets:
        return "resets"
    if config.scheme is not None and config.scheme.w_bits == FULL:
        return "schemes with 16-bit weights"
    return None
