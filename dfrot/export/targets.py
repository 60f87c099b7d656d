"""What each export format can hold, as data: the matrix, the refusals and the writers all follow from this table.

A *storage* is one way to keep integer weights; a *target* is a format with its storages and what else it can say.
Facts about engines were read in their sources in 2026-09; what has been executed here is in docs/export.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from dfrot.quant.scheme import FULL


@dataclass(frozen=True)
class Storage:
    """Integer weights of `bits` bits on a symmetric or asymmetric grid.

    block: columns per scale that the format fixes; our groups must be multiples of it (their scale is repeated).
    0: the format takes the group as it is, one of `groups` (0 among them: one scale per output channel).
    block_bytes: bytes of one block, where blocks are fixed. act: whether dynamic activations can stand beside it.
    """

    name: str
    bits: int
    symmetric: bool
    block: int = 0
    block_bytes: int = 0
    groups: tuple[int, ...] = ()
    act: bool = False


@dataclass(frozen=True)
class ExportTarget:
    """A format. engines: who reads it.

    a_bits: activation bits it can ask for (symmetric, dynamic, per token). dense: whether a 16-bit model can be
    exported. align: what rows and columns of a quantized linear must be multiples of. half: scales are float16.
    keeps: whether single linears beside the head may stay in 16 bits. quantized_head: whether the head may be
    quantized. online_r4: whether an online rotation of down_proj's input can be written. described: whether only
    architectures with a description of their names there (dfrot/arch/gguf.py) can be written.
    """

    name: str
    engines: tuple[str, ...]
    storages: tuple[Storage, ...]
    a_bits: tuple[int, ...] = (FULL,)
    dense: bool = False
    align: tuple[int, int] = (1, 1)
    half: bool = False
    keeps: bool = True
    quantized_head: bool = True
    online_r4: bool = False
    described: bool = False


GROUPS = (0, 32, 64, 128)


def engine_activation_clip(bits: int) -> float:
    """The activation clip ratio of ours that equals compressed-tensors' symmetric quantizer.

    It scales by max|x| / (2^(b-1) - 1/2), we by clip * max|x| / (2^(b-1) - 1)."""
    half: float = 2 ** (bits - 1)
    return (half - 1) / (half - 0.5)


COMPRESSED_TENSORS = ExportTarget(
    name="compressed-tensors",
    engines=("vLLM", "SGLang", "transformers"),
    storages=(
        Storage("pack-quantized", 4, True, groups=GROUPS, act=True),
        Storage("pack-quantized", 4, False, groups=GROUPS),
        Storage("pack-quantized", 8, True, groups=GROUPS, act=True),
    ),
    a_bits=(FULL, 8, 4),
    align=(1, 8),
    online_r4=True,
)
GGUF = ExportTarget(
    name="gguf",
    engines=("llama.cpp", "its descendants"),
    storages=(
        Storage("Q4_0", 4, True, block=32, block_bytes=18),
        Storage("Q4_1", 4, False, block=32, block_bytes=20),
        Storage("Q5_0", 5, True, block=32, block_bytes=22),
        Storage("Q5_1", 5, False, block=32, block_bytes=24),
        Storage("Q8_0", 8, True, block=32, block_bytes=34),
    ),
    dense=True,
    half=True,
    described=True,
)
GPTQ = ExportTarget(
    name="gptq",
    engines=("vLLM", "SGLang", "GPTQModel", "transformers with gptqmodel"),
    storages=(
        Storage("gptq v1", 4, True, groups=GROUPS),
        Storage("gptq v2", 4, False, groups=GROUPS),
        Storage("gptq v1", 8, True, groups=GROUPS),
    ),
    align=(32, 32),
    half=True,
    keeps=False,
    quantized_head=False,
)
TARGETS: dict[str, ExportTarget] = {target.name: target for target in (COMPRESSED_TENSORS, GGUF, GPTQ)}
