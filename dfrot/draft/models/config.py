"""The config of a draft: its sizes, its ablation switches, and the target that it belongs to."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from dfrot.draft.feature_selection import FeatureSelection
from dfrot.errors import InputError, UnsupportedError
from dfrot.field_types import check_types

ARCHS = ("dream", "eagle3", "dflash")
READ_LAYERS = ("eagle3", "dflash")  # that always read outputs of target layers; dream may
NUM_LAYERS, BLOCK_SIZE = 3, 8  # of dflash
MAX_BLOCK = 16
OF_BLOCKS = ("num_layers", "block_size", "mask_token_id")  # keys of draft.json that only dflash has
FORMAT_VERSION = 1


@dataclass(frozen=True)
class DraftConfig:
    """The config of a draft, `draft.json`."""

    arch: str
    """`dream`, `eagle3` or `dflash`."""
    hidden_size: int
    """Width of the draft."""
    target_hidden_size: int
    """Width of the target's features and embeddings."""
    intermediate_size: int
    """Inner width of the MLPs."""
    num_attention_heads: int
    """Query heads."""
    num_key_value_heads: int
    """Key/value heads."""
    head_dim: int
    """Width of a head; even."""
    vocab_size: int
    """Of the target."""
    rms_norm_eps: float = 1e-5
    """Epsilon of the norms."""
    rope_theta: float = 10000.0
    """Base of RoPE."""
    max_position_embeddings: int = 2048
    """Context of the target."""
    num_final_layers: int = 1
    """dream: self-attention blocks behind the cross block."""
    cross: bool = True
    """dream: False drops the cross-attention (ablation)."""
    distance: bool = True
    """dream: cross-attention heads prefer near features (see dream_blocks.py)."""
    mid_block: int = 0
    """dream: the block whose output imitates the intermediate feature."""
    select: str = "sample"
    """dream: how that feature is chosen in training (dfrot/draft/feature_selection.py)."""
    aux_layers: tuple[int, ...] = ()
    """eagle3, dflash, dream that reads layers: the target layers (counted from 1) whose outputs it reads. Empty, for
    dream alone: it reads the final norm's output."""
    trained_head: bool = False
    """dream: a head of its own, as eagle3's, in place of the target's."""
    newest: bool = True
    """dream that reads layers: False leaves the newest feature to the cross-attention (ablation)."""
    num_layers: int = 0
    """dflash: layers."""
    block_size: int = 0
    """dflash: rows of a block, the root included."""
    mask_token_id: int = 0
    """dflash: the token of the target whose embedding stands for a draft token that is to be found."""
    target_fingerprint: str = ""
    """`checkpoint_fingerprint` of the target (dfrot/vision/fingerprint.py)."""
    draft_vocab_size: int = 0
    """Tokens that the draft can propose; 0 for all of the target's. Which they are is in its tensor `d2t`."""
    quantized: str = ""
    """`w4` or `w8` where the draft's own linears are packed, else empty."""
    quantized_head: str = ""
    """`w8` where the head of a draft in `w4`, its own or its copy of the target's rows, has 8 bits, else empty."""
    format_version: int = FORMAT_VERSION
    """Of `draft.json`."""

    def __post_init__(self) -> None:
        check_types(self, "draft config")
        for name in ("rms_norm_eps", "rope_theta"):
            if not getattr(self, name) > 0:
                raise InputError(f"draft config: {name} is {getattr(self, name)!r}, a number above 0 is needed")
        if self.quantized_head and (self.quantized, self.quantized_head) != ("w4", "w8"):
            raise InputError(
                f"draft config: quantized_head is {self.quantized_head!r} beside quantized {self.quantized!r}; w8 "
                "beside w4 is possible"
            )
        if self.arch not in ARCHS:
            raise UnsupportedError(f"draft architecture {self.arch!r} is unknown; use one of {', '.join(ARCHS)}")
        if self.format_version != FORMAT_VERSION:
            raise UnsupportedError(f"draft format_version {self.format_version} is unknown; update dfq")
        sizes = ("hidden_size", "target_hidden_size", "intermediate_size", "num_attention_heads", "head_dim")
        for name in (*sizes, "num_key_value_heads", "vocab_size", "max_position_embeddings"):
            value = getattr(self, name)
            if type(value) is not int or not 0 < value < 2**31:
                raise InputError(f"draft config: {name} is {value!r}, a positive integer is needed")
        if type(self.draft_vocab_size) is not int or not 0 <= self.draft_vocab_size < self.vocab_size:
            raise InputError(
                f"draft config: draft_vocab_size is {self.draft_vocab_size!r}, must be 0 or below {self.vocab_size}"
            )
        if self.num_attention_heads % self.num_key_value_heads or self.head_dim % 2:
            raise InputError("draft config: heads must be a multiple of key/value heads, head_dim must be even")
        if self.mid_block not in (0, 1) or not 0 <= self.num_final_layers <= 2:
            raise InputError("draft config: mid_block is 0 or 1, num_final_layers is 0, 1 or 2")
        if self.arch == "eagle3" and len(self.aux_layers) != 3:
            raise InputError("draft config: eagle3 reads three layers; aux_layers must name them")
        if self.arch == "dflash":
            self._check_blocks()
        FeatureSelection.parse(self.select)

    def _check_blocks(self) -> None:
        if not self.aux_layers or self.hidden_size != self.target_hidden_size:
            raise InputError("draft config: dflash reads layers (`aux_layers`) and is as wide as its target")
        limits = {"num_layers": (1, 64), "block_size": (2, MAX_BLOCK), "mask_token_id": (0, self.vocab_size - 1)}
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise InputError(f"draft config: {name} is {value!r}, must be between {low} and {high}")

    @property
    def proposed_size(self) -> int:
        """Tokens that the draft can propose."""
        return self.draft_vocab_size or self.vocab_size

    @property
    def feature_size(self) -> int:
        """Width of the target features that the draft reads in decoding."""
        return self.target_hidden_size * max(1, len(self.aux_layers))

    def to_dict(self) -> dict[str, Any]:
        """The JSON of `draft.json`."""
        values = {**asdict(self), "aux_layers": list(self.aux_layers)}
        if not self.draft_vocab_size:  # drafts of the whole vocabulary keep the file that they always had
            del values["draft_vocab_size"]
        for name, usual in (("newest", True), ("trained_head", False), ("quantized_head", "")):
            if values[name] == usual:
                del values[name]
        if self.arch != "dflash":
            values = {name: value for name, value in values.items() if name not in OF_BLOCKS}
        return values

    @classmethod
    def from_dict(cls, value: Any, where: str) -> DraftConfig:
        """From the JSON of `draft.json`, whose path is `where`. Raises InputError for a malformed object,
        UnsupportedError for unknown keys, which a newer dfq may have written."""
        if not isinstance(value, dict):
            raise InputError(f"{where}: not a JSON object; restore the file")
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(value) - known):
            raise UnsupportedError(f"{where}: unknown key {unknown[0]!r}; is this a draft of a newer dfq?")
        try:
            return cls(**{**value, "aux_layers": tuple(int(n) for n in value.get("aux_layers", ()))})
        except (TypeError, ValueError) as error:
            raise InputError(f"{where}: malformed ({error}); restore the file") from None
