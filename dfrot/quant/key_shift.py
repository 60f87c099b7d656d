"""The key shift: a constant vector per key head, subtracted from keys behind RoPE and R3 before the cache rounds them.

`softmax(q k^T)` does not change when the same vector is subtracted from every key of a head: each score of a row
changes by the same amount. So nothing is restored when the cache is read, as long as all keys of a head are shifted,
exact sinks included. What is left is smaller, and so are the steps of the grid: keys have a large common part, above
all where the key projection has a bias (Qwen 2.5), whose slow RoPE pairs hardly turn.
"""

from __future__ import annotations

from dfrot.arch import BoundArch
from dfrot.quant.config import DfqConfig

TENSOR = "key_shift"
"""The name of the tensor float32 [kv heads, head_dim] in an attention module, in the basis of the cache (behind R3)."""


def refuses_key_shift(arch: BoundArch) -> str | None:
    """Why keys cannot be shifted, or None: a cap between scores and softmax sees what softmax does not."""
    key = arch.spec.scalars.attention_cap
    if key and arch.config.get(key, key) is not None:  # where config.json is silent, transformers has a cap
        return f"{arch.spec.model_type}: keys cannot be shifted: attention scores are capped before the softmax"
    return None


def key_shift_name(arch: BoundArch, layer: int) -> str:
    """The full name of a layer's tensor."""
    return f"{arch.attention(layer)}.{TENSOR}"


def key_shift_tensors(arch: BoundArch, config: DfqConfig | None) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that a checkpoint with this configuration has; none without a shift."""
    if config is None or not config.shifts_keys:
        return {}
    return {key_shift_name(arch, layer): (arch.n_kv_heads, arch.head_dim) for layer in range(arch.n_layers)}
