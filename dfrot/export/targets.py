"""What each export format can hold, as data. The matrix of formats, the refusals and the writers follow this table.

A *storage* is one way to keep quantized weights. A *target* is a format with its storages and its other properties.
Facts about engines were read from their sources in 2026-09; docs/export.md says what was run.
"""

from __future__ import annotations

from dataclasses import dataclass

from dfrot.quant.scheme import FULL, INTEGERS, MXFP4, NVFP4


@dataclass(frozen=True)
class Storage:
    """One way to keep quantized weights."""

    name: str
    """Name of the storage in the format, for instance `Q4_0`."""
    bits: int
    """Bits per weight."""
    symmetric: bool
    """Symmetric grid, or asymmetric with zero points."""
    block: int = 0
    """Columns per scale that the format fixes; groups must be multiples of it, and repeat their scale. 0: the format
    takes any of `groups`."""
    block_bytes: int = 0
    """Bytes of one block, scale included, where `block` is not 0."""
    groups: tuple[int, ...] = ()
    """Group sizes the format accepts; 0 is one scale per output channel."""
    number_format: str = INTEGERS
    """What weights are: `int`, or a format of FP4."""
    with_quantized_activations: bool = False
    """Whether engines run these weights with dynamically quantized activations."""
    without_quantized_activations: bool = True
    """Whether engines run these weights with 16-bit activations."""


@dataclass(frozen=True)
class ExportTarget:
    """An export format."""

    name: str
    """What `dfq export --to` calls it."""
    engines: tuple[str, ...]
    """Programs that load it."""
    storages: tuple[Storage, ...]
    """How it can keep weights."""
    a_bits: tuple[int, ...] = (FULL,)
    """Activation bits that it can ask for (symmetric, dynamic, per token)."""
    dense: bool = False
    """Whether a 16-bit model can be exported."""
    align: tuple[int, int] = (1, 1)
    """Rows and columns of a quantized linear must be multiples of these."""
    keeps_linears: bool = True
    """Whether linears other than the head may stay in 16 bits."""
    quantized_head: bool = True
    """Whether the head may be quantized."""
    own_tables: bool = False
    """Whether embedding and head may be quantized in other ways than the linears of blocks."""
    online_r4: bool = False
    """Whether an online rotation of down_proj's input can be written."""
    needs_described_names: bool = False
    """Whether only architectures with an entry in dfrot/arch/gguf.py can be written; also whether `dtype` applies."""


GROUPS = (0, 32, 64, 128)


def engine_activation_clip(bits: int) -> float:
    """Our activation clip ratio that equals the engines' symmetric quantizer of `bits` bits.

    They scale by max|x| / (2^(b-1) - 1/2), we scale by clip * max|x| / (2^(b-1) - 1)."""
    half: float = 2 ** (bits - 1)
    return (half - 1) / (half - 0.5)


COMPRESSED_TENSORS = ExportTarget(
    name="compressed-tensors",
    engines=("vLLM", "SGLang", "transformers"),
    storages=(
        Storage(
            "int-quantized", 8, True, groups=(0,), with_quantized_activations=True, without_quantized_activations=False
        ),
        Storage("pack-quantized", 4, True, groups=GROUPS, with_quantized_activations=True),
        Storage("pack-quantized", 4, False, groups=GROUPS),
        Storage("pack-quantized", 8, True, groups=GROUPS, with_quantized_activations=True),
        Storage("nvfp4-pack-quantized", 4, True, groups=(16,), number_format=NVFP4, with_quantized_activations=True),
        Storage("mxfp4-pack-quantized", 4, True, groups=(32,), number_format=MXFP4, with_quantized_activations=True),
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
    own_tables=True,
    needs_described_names=True,
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
    keeps_linears=False,
    quantized_head=False,
)
TARGETS: dict[str, ExportTarget] = {target.name: target for target in (COMPRESSED_TENSORS, GGUF, GPTQ)}
