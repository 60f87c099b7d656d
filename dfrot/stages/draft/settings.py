"""Settings of `dfq draft train|eval|generate`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from dfrot.draft.training.settings import TrainOptions
from dfrot.errors import InputError
from dfrot.generation.sampling import Sampling
from dfrot.vision.settings import KEEP


@dataclass(frozen=True)
class DataSettings:
    """dataset: stdlib, wikitext2, a text, a .jsonl of messages (with images), or shapes. samples and held_out:
    sequences of at most seqlen tokens. regenerate: the target writes all but the first `prompt` tokens itself
    (greedily), with images all behind the question. keep: share of image tokens that are slots of the draft on held-out
    samples."""

    dataset: str = "stdlib"
    samples: int = 1024
    held_out: int = 16
    seqlen: int = 256
    regenerate: bool = False
    prompt: int = 32
    seed: int = 0
    keep: float = KEEP

    def __post_init__(self) -> None:
        if not 0 <= self.keep <= 1:
            raise InputError(f"--keep-visual {self.keep}: is not a share between 0 and 1")
        for name, least in (("samples", 1), ("held_out", 1), ("seqlen", 8), ("prompt", 1)):
            if getattr(self, name) < least:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)}: at least {least} is needed")
        if self.prompt >= self.seqlen:
            raise InputError(f"--prompt {self.prompt}: must be shorter than --seqlen {self.seqlen}")


@dataclass(frozen=True)
class DraftSettings:
    """arch: dream or eagle3. select: sample, token, static:F or none. cross: False leaves the cross-attention out,
    distance: False its lean towards near features. intermediate: width of the draft's MLPs, None for the target's.
    warm: begin with the target's own first and last block (dfrot/draft/training/init_from_target.py).
    quantize: w4 or w8 rounds the trained draft."""

    arch: str = "dream"
    select: str = "sample"
    cross: bool = True
    distance: bool = True
    intermediate: int | None = None
    warm: bool = True
    quantize: str = ""
    data: DataSettings = field(default_factory=DataSettings)
    train: TrainOptions = field(default_factory=TrainOptions)


@dataclass(frozen=True)
class DraftEvalSettings:
    """prompts: how many of the held-out text of `dataset` (a text, each of `prompt_tokens` tokens; a .jsonl of `prompt`
    or `messages`, with `images`; shapes). Answers about images end where the target ends them. keep: share of image
    tokens that are slots of the draft. shapes: (depth, top-k, total) of every comparison, all in one process. force:
    also drafts of another target. draft_dtype: what the draft computes
    in; auto takes bfloat16 for a large one, and where its passes are native calls (which compute in float32 from the
    bfloat16 weights of the file), else float32."""

    dataset: str = "stdlib"
    prompts: int = 20
    prompt_tokens: int = 64
    max_new_tokens: int = 128
    shapes: tuple[tuple[int, int, int], ...] = ((3, 1, 0), (5, 4, 16))
    sampling: Sampling = Sampling()
    force: bool = False
    seed: int = 0
    draft_dtype: str = "auto"
    keep: float = KEEP


@dataclass(frozen=True)
class GenerateSettings:
    """shape: (depth, top-k, total), or None to choose from measured costs. stop: strings that end the text. images:
    files that stand before the prompt, in the model's chat template; keep: share of their tokens that it sees."""

    prompt: str
    max_new_tokens: int = 128
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    shape: tuple[int, int, int] | None = None
    sampling: Sampling = Sampling()
    force: bool = False
    seed: int = 0
    draft_dtype: str = "auto"
    images: tuple[Path, ...] = ()
    keep: float = KEEP
