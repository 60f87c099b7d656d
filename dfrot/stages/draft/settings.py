"""Settings of `dfq draft train|extract|eval`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from dfrot.draft.training.settings import TrainSettings
from dfrot.errors import InputError
from dfrot.generation.sampling import Sampling
from dfrot.generation.settings import GenerateSettings
from dfrot.settings import check, dataset_setting, same_as, seed_setting, setting

CHAIN_OF_3 = (3, 1, 0)
"""The tree shape that is measured where none is given: (depth, top-k, total nodes)."""


@dataclass(frozen=True)
class DataSettings:
    """What a draft is trained on."""

    dataset: str = dataset_setting(
        "stdlib",
        "What to train on: stdlib, wikitext2, a text file or folder, a file of conversations or of prompts with "
        "completions, a .jsonl of messages with images, or shapes.",
        aliases=("--data",),
    )
    samples: int = setting(1024, minimum=1, help="Training sequences.")
    held_out: int = setting(16, minimum=1, help="Held-out sequences that acceptance is measured on.")
    seqlen: int = setting(256, minimum=8, help="The most tokens of a sequence.")
    regenerate: bool = setting(
        False,
        help="Let the target write all but the first `prompt` tokens itself, greedily; with images, all of the answer.",
    )
    prompt: int = setting(32, minimum=1, help="Tokens of a sequence that `regenerate` keeps.")
    seed: int = seed_setting()
    keep: float = same_as(GenerateSettings, "keep")

    def __post_init__(self) -> None:
        check(self)
        if self.prompt >= self.seqlen:
            raise InputError(
                f"`prompt` {self.prompt}: must be shorter than `seqlen` {self.seqlen}",
                field=("prompt", "seqlen"),
                limit=self.seqlen,
            )


@dataclass(frozen=True)
class DraftSettings:
    """The architecture of a draft, and how it is trained."""

    arch: str = setting("dream", choices=("dream", "eagle3", "dflash"), help="Architecture of the draft.")
    select: str = setting(
        "sample",
        option="--feature-select",
        metavar="RULE",
        help="Which of the target's layers the intermediate feature comes from: chosen per sample, per token, static:F "
        "(at the fraction F of the depth) or none.",
    )
    cross: bool = setting(True, help="Use cross-attention to the target's features. Without: an ablation.")
    distance: bool = setting(True, help="Bias the cross-attention towards near features.")
    reads: str = setting(
        "last",
        choices=("last", "layers"),
        help="dream: what it reads of the target: the final norm's output, or a low, a middle and a deep layer as "
        "eagle3 does.",
    )
    trained_head: bool = setting(
        False,
        option="--trained-head/--target-head",
        help="dream: train a head of the draft's own, which begins as the target's rows, as eagle3 does; or let the "
        "draft use the target's.",
    )
    newest: bool = setting(True, help="dream that reads layers: add the newest feature to the draft's stream.")
    intermediate: int | None = setting(None, minimum=1, help="Width of the draft's MLPs. Default: the target's.")
    block_size: int | None = setting(
        None,
        minimum=2,
        maximum=16,
        help="dflash: rows of a block; it proposes one token less. Default: 8.",
    )
    num_layers: int | None = setting(
        None, minimum=1, maximum=64, option="--draft-layers", help="dflash: layers of the draft. Default: 3."
    )
    warm: bool = setting(
        True, option="--warm/--cold", help="Start from the target's own first and last block, or from random weights."
    )
    draft_vocab: float | Literal["auto"] | None = setting(
        None,
        minimum=2,
        words=("auto",),
        metavar="N|auto",
        help="Let the draft propose only the N most frequent tokens of what it is trained on; auto takes the smallest "
        "of 2048, 4096, 8192, 16384 and 32768 that covers 95 % of it. Default: the whole vocabulary.",
    )
    quantize: str = setting(
        "", choices=("w4", "w8"), option="--quantize-draft", help="Round the weights of the trained draft."
    )
    quantize_head: str = setting(
        "auto",
        choices=("auto", "w4", "w8"),
        option="--quantize-draft-head",
        help="Bits of the head of a draft in w4, its own or its copy of the target's: auto takes w8 for draft "
        "vocabularies of at most 4096 tokens, else w4.",
    )
    data: DataSettings = field(default_factory=DataSettings)
    """What it is trained on."""
    train: TrainSettings = field(default_factory=TrainSettings)
    """How it is trained."""

    @property
    def reads_layers(self) -> bool:
        """Whether the draft reads outputs of target layers."""
        from dfrot.draft.models.config import READ_LAYERS  # imports torch, which settings are read without

        return self.arch in READ_LAYERS or self.reads == "layers"

    def __post_init__(self) -> None:
        check(self)
        if self.arch != "dream" and self.reads != "last":
            raise InputError("`reads` belongs to `arch` dream; leave it out", field=("reads", "arch"))
        if self.arch != "dream" and self.trained_head:
            raise InputError("`trained_head` belongs to `arch` dream; leave it out", field=("trained_head", "arch"))
        if self.quantize != "w4" and self.quantize_head != "auto":
            raise InputError(
                "`quantize_head` belongs to `quantize` w4; leave it out", field=("quantize_head", "quantize")
            )
        for name in ("block_size", "num_layers"):
            if self.arch != "dflash" and getattr(self, name) is not None:
                raise InputError(f"`{name}` belongs to `arch` dflash; leave it out", field=(name, "arch"))


@dataclass(frozen=True)
class DraftEvalSettings:
    """How a draft is measured: plain against speculative decoding of the same held-out prompts.

    Answers about images end where the target ends them."""

    dataset: str = dataset_setting(
        "stdlib",
        "Where prompts come from: a text, a file of prompts or conversations, a .jsonl with images, or shapes.",
        aliases=("--prompts",),
    )
    prompts: int = setting(20, minimum=1, option="--count", help="Number of prompts.")
    prompt_tokens: int = setting(64, minimum=2, help="Tokens of a prompt that is cut from a text.")
    max_new_tokens: int = setting(128, minimum=2, help="The most new tokens per prompt.")
    shapes: tuple[tuple[int, int, int], ...] = (CHAIN_OF_3,)
    """Tree shapes, (depth, top-k, total nodes) each; all are measured in one process. Empty with look-up drafting:
    the length of every chain is chosen as in generation."""
    adaptive: bool = setting(
        False,
        help="Also decode as generation does: the shape is chosen from measured costs, and drafting given up where it "
        "does not pay.",
    )
    sampling: Sampling = Sampling()
    """How tokens are chosen."""
    force: bool = same_as(GenerateSettings, "force")
    seed: int = seed_setting()
    draft_dtype: str = setting(
        "auto",
        choices=("auto", "float32", "bfloat16"),
        help="Data type of the draft. auto takes bfloat16 for a large draft and for one that runs as native calls "
        "(these compute in float32 from the bfloat16 weights of the file), else float32.",
    )
    keep: float = same_as(DataSettings, "keep")

    def __post_init__(self) -> None:
        check(self)
