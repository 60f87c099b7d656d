"""Settings of `dfq rotate`."""

from __future__ import annotations

from dataclasses import dataclass

from dfrot.errors import InputError
from dfrot.quant.scheme import default_clip
from dfrot.rotation.refinement.massive_rule import MassiveRule
from dfrot.rotation.refinement.settings import RefineSettings
from dfrot.settings import check, dataset_setting, same_as, seed_setting, setting

AUTO = "auto"
OUTPUTS, ROWS = "outputs", "rows"
NONE = "none"
SMOOTH = "smooth"


@dataclass(frozen=True)
class RotateSettings:
    """How a checkpoint is rotated. An architecture that R1 cannot be fused into has R2, R3 and R4 alone, with method
    hadamard."""

    method: str = setting(
        "dfrot",
        choices=("dfrot", "hadamard", "orthogonal", SMOOTH, "none"),
        help="What R1 is: dfrot (a randomised Hadamard matrix, refined on one text sample), hadamard, orthogonal "
        "(random); smooth: there are no rotations, channels are scaled, for nvfp4 and mxfp4; none: the weights stay as "
        "they are.",
    )
    dataset: str | None = dataset_setting(
        "wikitext2",
        "Text of the refinement (train split) and of the equivalence gate (test split). None lets the gate use random "
        "token ids, and excludes method dfrot.",
    )
    seqlen: int = setting(2048, minimum=2, help="Tokens of the text sample that dfrot refines on.")
    seed: int = seed_setting()
    gamma: float | str = same_as(RefineSettings, "gamma")
    a_bits: int = same_as(RefineSettings, "bits")
    a_sym: bool = same_as(
        RefineSettings,
        "symmetric",
        option="--a-sym/--a-asym",
        help="Refine for a symmetric or an asymmetric activation quantizer.",
    )
    a_clip: float | None = same_as(
        RefineSettings,
        "clip",
        default=None,
        above=None,
        minimum=0.1,
        help="Clip ratio of the activation quantizer that R1 is refined for. Default: 0.85 with objective outputs "
        "where activations have at most 4 bits on an asymmetric grid, as dfq quantize takes it, else 1.",
    )
    objective: str = setting(
        OUTPUTS,
        choices=(OUTPUTS, ROWS),
        help="What dfrot minimises. outputs: the error in the outputs of the linears behind R1 when their rotated "
        "input is rounded, by gradient descent. rows: the error of the rotated rows, massive tokens weighted, by "
        "Procrustes steps (as published).",
    )
    steps: int = setting(300, minimum=0, help="With objective outputs: steps of gradient descent.")
    learn: int = setting(
        0,
        minimum=0,
        help="With method dfrot: further steps, of 4,096 tokens, in which R1 learns from the predictions of the whole "
        "model with rounded activations. The model must fit into memory, twice in 16 bits; a step takes as long as one "
        "of dfq tune.",
    )
    rounds: int = same_as(RefineSettings, "rounds", help="With objective rows: the most rounds of either search.")
    massive_rule: str = setting(
        "energy",
        metavar="RULE",
        help="Which tokens count as massive (activations far above all others): energy, maxmedian, quantization or "
        "published, with a threshold if wanted (energy:0.95).",
    )
    online: bool = setting(
        True, help="Use the online rotations R3 and R4. Without them the result is an ordinary checkpoint."
    )
    r4_block: int | None = setting(
        None, minimum=1, help="Block size of R4. Default: the widest Hadamard matrix that divides the MLP's width."
    )
    block: int | None = setting(
        None,
        minimum=2,
        help="Rotate within blocks of this many channels (R1, R2 and R4; method hadamard): as wide as the groups of a "
        "format with a scale per group, such as mxfp4 (32) and nvfp4 (16), so that an outlier stays in its group. "
        "Default: the whole width.",
    )
    align: bool | None = setting(
        None,
        option="--align/--no-align",
        help="Choose R1, and the signs of the norms' gains, so that the mean of every norm's output becomes a constant "
        "that asymmetric activation grids absorb; dfrot starts its refinement there. Default: wherever it is "
        "possible, with `online` rotations.",
    )
    transform: tuple[str, ...] = setting(
        (AUTO,),
        listed=True,
        metavar="NAMES",
        help="Free transforms beside the rotations, with commas between them: up-down, head-center, head-scale, "
        "head-whiten, key-scale, norm-scale (method smooth alone); NAME:MODE for a variant. auto: up-down, head-whiten "
        "and key-scale, as far as the architecture takes them, with `online` rotations; with method smooth norm-scale "
        "and up-down; none: no transform.",
    )
    transform_windows: int = setting(
        4,
        minimum=1,
        help="Windows of `seqlen` tokens of the train split that transforms are computed from, and that R1 is refined "
        "on with objective outputs.",
    )
    gate: bool = setting(True, help="Compare the result with the source checkpoint before it is published.")

    def __post_init__(self) -> None:
        check(self)
        if self.method == "dfrot" and self.dataset is None:
            raise InputError(
                '`method="dfrot"` refines on text: give a `dataset`, or take `method="hadamard"`',
                field=("method", "dataset"),
            )
        if self.learn and self.method != "dfrot":
            raise InputError('`learn` is for `method="dfrot"`', field=("learn", "method"))
        MassiveRule.parse(self.massive_rule)
        if self.block and self.method != "hadamard":
            raise InputError(
                f'`block` is for `method="hadamard"`: {self.method} mixes all channels', field=("block", "method")
            )
        if self.block and self.align:
            raise InputError("`align` mixes all channels, `block` does not: take one of them", field=("align", "block"))
        if self.method == SMOOTH and self.dataset is None:
            raise InputError('`method="smooth"` needs a `dataset` to measure channels on', field=("method", "dataset"))
        if self.align and (self.dataset is None or not self.turns):
            missing = "a `dataset` to take rows from" if self.dataset is None else "a `method` that rotates"
            raise InputError(f"`align` needs {missing}", field=("align", "dataset", "method"))
        if self.align and self.a_sym:
            raise InputError(
                "`align` is for asymmetric activations: a symmetric grid has no offset that absorbs a constant",
                field=("align", "a_sym"),
            )
        alone = [word for word in (AUTO, NONE) if word in self.transform]
        if alone and len(self.transform) > 1:
            raise InputError(f"`transform`: {alone[0]} stands alone; leave the other names out", field="transform")
        if self.asks_for_transforms and (self.dataset is None or self.method == "none"):
            missing = "a `dataset` to compute them from" if self.dataset is None else "a `method` other than none"
            raise InputError(f"`transform` needs {missing}", field=("transform", "dataset", "method"))

    @property
    def turns(self) -> bool:
        """Whether there are rotations."""
        return self.method not in (SMOOTH, NONE)

    @property
    def asks_for_transforms(self) -> bool:
        """Whether transforms are named, rather than left to the architecture or turned off."""
        return bool(self.transform) and self.transform[0] not in (AUTO, NONE)

    @property
    def refines_outputs(self) -> bool:
        """Whether R1 is refined for the outputs of linears."""
        return self.method == "dfrot" and self.objective == OUTPUTS

    @property
    def clip(self) -> float:
        """The clip ratio of the quantizer that R1 is refined for."""
        if self.a_clip is not None:
            return self.a_clip
        return default_clip(self.a_bits, self.a_sym) if self.refines_outputs else 1.0

    def refinement(self) -> RefineSettings:
        """The settings of the refinement itself."""
        return RefineSettings(
            bits=self.a_bits,
            symmetric=self.a_sym,
            clip=self.clip,
            gamma=self.gamma,
            rounds=self.rounds,
            seed=self.seed,
        )
