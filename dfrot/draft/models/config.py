"""What a draft is: its sizes, its ablation switches, and the target that it belongs to."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from dfrot.draft.feature_selection import FeatureSelection
from dfrot.errors import InputError, UnsupportedError

ARCHS = ("dream", "eagle3")
FORMAT_VERSION = 1


@dataclass(frozen=True)
class DraftConfig:
    """arch: dream or eagle3. target_hidden_size: width of the target's features and embeddings. cross: False drops
    the cross-attention sublayer (ablation). distance: its heads lean towards near features (see dream.py). mid_block:
    the block whose output imitates the intermediate feature.
    num_final_layers: self-attention blocks behind the cross block. select: how that feature was chosen (training
    only). aux_layers: decoder layers whose outputs eagle3 reads. target_fingerprint: see dfrot/draft/store.py.
    quantized: w4 or w8 when the draft's own linears are packed, else empty."""

    arch: str
    hidden_size: int
    target_hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    max_position_embeddings: int = 2048
    num_final_layers: int = 1
    cross: bool = True
    distance: bool = True
    mid_block: int = 0
    select: str = "sample"
    aux_layers: tuple[int, ...] = ()
    target_fingerprint: str = ""
    quantized: str = ""
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        if self.arch not in ARCHS:
            raise UnsupportedError(f"draft architecture {self.arch!r} is unknown; use one of {', '.join(ARCHS)}")
        if self.format_version != FORMAT_VERSION:
            raise UnsupportedError(f"draft format_version {self.format_version} is unknown; update dfq")
        sizes = ("hidden_size", "target_hidden_size", "intermediate_size", "num_attention_heads", "head_dim")
        for name in (*sizes, "num_key_value_heads", "vocab_size", "max_position_embeddings"):
            value = getattr(self, name)
            if type(value) is not int or not 0 < value < 2**31:
                raise InputError(f"draft config: {name} is {value!r}, a positive integer is needed")
        if self.num_attention_heads % self.num_key_value_heads or self.head_dim % 2:
            raise InputError("draft config: heads must be a multiple of key/value heads, head_dim must be even")
        if self.mid_block not in (0, 1) or not 0 <= self.num_final_layers <= 2:
            raise InputError("draft config: mid_block is 0 or 1, num_final_layers is 0, 1 or 2")
        if self.arch == "eagle3" and len(self.aux_layers) != 3:
            raise InputError("draft config: eagle3 reads three layers; aux_layers must name them")
        FeatureSelection.parse(self.select)

    @property
    def feature_size(self) -> int:
        """Width of the target features that decoding hands to the draft."""
        return self.target_hidden_size * (len(self.aux_layers) if self.arch == "eagle3" else 1)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "aux_layers": list(self.aux_layers)}

    @classmethod
    def from_dict(cls, value: Any, where: str) -> DraftConfig:
        """Strict: unknown and missing keys are refused."""
        if not isinstance(value, dict):
            raise InputError(f"{where}: not a JSON object; restore the file")
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(value) - known):
            raise UnsupportedError(f"{where}: unknown key {unknown[0]!r}; is this a draft of a newer dfq?")
        try:
            return cls(**{**value, "aux_layers": tuple(int(n) for n in value.get("aux_layers", ()))})
        except (TypeError, ValueError) as error:
            raise InputError(f"{where}: malformed ({error}); restore the file") from None
