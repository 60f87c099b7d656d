"""What engines do with each kind of export, as data: choices of `dfq export --for`, warnings, refusals and the docs
follow.

A *promise* says what an engine makes of weights kept in one way with activations of so many bits. `run` promises were
kept or broken in this project (docs/results/engines.md); the others were read in the engine's sources and are
unverified. Versions: vLLM 0.32, SGLang 0.5.23, transformers 5.23 with compressed-tensors 0.20, llama.cpp of
llama-cpp-python 0.3.36, GPTQModel 7.2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dfrot.quant.scheme import FULL

Served = Literal["as declared", "as W{w}A16", "refused", "something else"]
DECLARED: Served = "as declared"
WEIGHTS_ONLY: Served = "as W{w}A16"
REFUSED: Served = "refused"
NONSENSE: Served = "something else"


@dataclass(frozen=True)
class Promise:
    """What an engine makes of one kind of export."""

    engine: str
    """Its name."""
    storage: str
    """How weights are kept: `targets.Storage.name`."""
    served: Served
    """What it serves."""
    device: str = ""
    """cpu or cuda, where they differ; empty for both."""
    w_bits: tuple[int, ...] = ()
    """Weight bits; empty for all of the storage."""
    w_sym: bool | None = None
    """Symmetric weights, asymmetric ones, or both (None)."""
    a_bits: tuple[int, ...] = (FULL,)
    """Activation bits."""
    r4: bool = False
    """Whether this is about exports with an online R4."""
    flag: str = ""
    """What makes it serve the export as declared."""
    note: str = ""
    """Why, or what else to know."""
    run: bool = False
    """Whether this was seen here."""

    def matches(self, storage: str, w_bits: int, w_sym: bool, a_bits: int, r4: bool, device: str) -> bool:
        """Whether it speaks of this export."""
        return (
            self.storage == storage
            and self.r4 == r4
            and self.device in ("", device)
            and (not self.w_bits or w_bits in self.w_bits)
            and self.w_sym in (None, w_sym)
            and a_bits in self.a_bits
        )


PACKED, INT8, NVFP4, MXFP4 = "pack-quantized", "int-quantized", "nvfp4-pack-quantized", "mxfp4-pack-quantized"
V1, V2 = "gptq v1", "gptq v2"
NO_8_BIT = "its CPU kernel has 4-bit weights only; w4a16, or w8a8"
NO_DENSE_INT = "dense INT activations have no scheme; serves w4a16"
SKIPS_ACTIVATIONS = "its kernels for 4-bit weights take 16-bit activations"
NO_FP4 = "no FP4 kernel for processors"
BLACKWELL = "from Blackwell on; before, activations stay in 16 bits"
SYMMETRIC_GPTQ = "knows symmetric GPTQ only; compressed-tensors holds asymmetric weights"
NEEDS_GPTQMODEL = "needs the packages gptqmodel and optimum"
PACKED_ZEROS = "its default path cannot load packed zero points"
DEQUANTIZE = "model_kwargs={'quantization_config': CompressedTensorsConfig(dequantize=True)}"
HUMMING = "--linear-backend humming"

PROMISES: tuple[Promise, ...] = (
    # vLLM
    Promise("vllm", PACKED, DECLARED, "cpu", (4,), run=True),
    Promise("vllm", PACKED, REFUSED, "cpu", (8,), a_bits=(FULL, 8), note=NO_8_BIT, run=True),
    Promise("vllm", PACKED, WEIGHTS_ONLY, "cpu", (4,), a_bits=(4, 8), note=SKIPS_ACTIVATIONS, run=True),
    Promise("vllm", PACKED, DECLARED, "cuda"),
    Promise(
        "vllm",
        PACKED,
        WEIGHTS_ONLY,
        "cuda",
        a_bits=(4, 8),
        flag=HUMMING,
        note="Marlin and Machete come first and skip them",
    ),
    Promise("vllm", INT8, DECLARED, "cpu", a_bits=(8,), run=True),
    Promise("vllm", INT8, DECLARED, "cuda", a_bits=(8,)),
    Promise("vllm", PACKED, REFUSED, "cpu", r4=True, note="hadacore_transform is a CUDA kernel", run=True),
    Promise("vllm", PACKED, DECLARED, "cuda", r4=True, note="tensor parallel 1, no bias in down_proj"),
    Promise("vllm", V1, DECLARED, "cpu", (4,), run=True),
    Promise("vllm", V1, REFUSED, "cpu", (8,), note=NO_8_BIT, run=True),
    Promise("vllm", V1, DECLARED, "cuda"),
    Promise("vllm", V2, REFUSED, note=SYMMETRIC_GPTQ, run=True),
    Promise("vllm", NVFP4, REFUSED, "cpu", a_bits=(FULL, 4), note=NO_FP4, run=True),
    Promise("vllm", NVFP4, DECLARED, "cuda"),
    Promise(
        "vllm", NVFP4, DECLARED, "cuda", a_bits=(4,), note="from Blackwell on; before, activations stay in 16 bits"
    ),
    Promise("vllm", MXFP4, REFUSED, "cpu", a_bits=(FULL, 4), note=NO_FP4, run=True),
    Promise("vllm", MXFP4, DECLARED, "cuda"),
    Promise(
        "vllm", MXFP4, DECLARED, "cuda", a_bits=(4,), note="from Blackwell on; before, activations stay in 16 bits"
    ),
    # SGLang
    Promise("sglang", PACKED, DECLARED),
    Promise("sglang", PACKED, REFUSED, a_bits=(4, 8), note=NO_DENSE_INT),
    Promise("sglang", PACKED, REFUSED, r4=True, note="no online transforms"),
    Promise("sglang", INT8, DECLARED, a_bits=(8,)),
    Promise("sglang", V1, DECLARED),
    Promise("sglang", V2, REFUSED, note="shares vLLM's kernels for symmetric GPTQ"),
    Promise("sglang", NVFP4, DECLARED),
    Promise("sglang", NVFP4, DECLARED, a_bits=(4,), note=BLACKWELL),
    # transformers
    Promise("transformers", PACKED, DECLARED, w_sym=True, run=True),
    Promise("transformers", PACKED, REFUSED, w_sym=False, flag=DEQUANTIZE, note=PACKED_ZEROS, run=True),
    Promise("transformers", PACKED, DECLARED, a_bits=(4, 8), run=True),
    Promise("transformers", INT8, DECLARED, a_bits=(8,), run=True),
    Promise("transformers", PACKED, NONSENSE, r4=True, note="leaves R4 out without a word", run=True),
    Promise("transformers", NVFP4, DECLARED, a_bits=(FULL, 4), run=True),
    Promise("transformers", MXFP4, DECLARED, a_bits=(FULL, 4), run=True),
    Promise("transformers", V1, DECLARED, note=NEEDS_GPTQMODEL),
    Promise("transformers", V2, DECLARED, note=NEEDS_GPTQMODEL),
    # llama.cpp
    *(
        Promise("llama.cpp", storage, DECLARED, note="rounds activations to 8-bit blocks while it multiplies", run=True)
        for storage in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
    ),
    Promise("llama.cpp", "dense", DECLARED, run=True),
)
PREFERENCES: dict[str, tuple[str, ...]] = {
    "vllm": ("compressed-tensors", "gptq"),
    "sglang": ("compressed-tensors", "gptq"),
    "transformers": ("compressed-tensors", "gptq"),
    "llama.cpp": ("gguf",),
}
"""Engine -> the formats it loads, the best first."""


def promise(
    engine: str, storage: str, w_bits: int, w_sym: bool, a_bits: int, r4: bool = False, device: str = "cuda"
) -> Promise | None:
    """What an engine makes of an export; None where nothing is known of it."""
    for known in PROMISES:
        if known.engine == engine and known.matches(storage, w_bits, w_sym, a_bits, r4, device):
            return known
    return None


def markdown() -> str:
    """The table of the docs."""
    lines = ["| engine | weights | activations | on | serves it | |", "| --- | --- | --- | --- | --- | --- |"]
    for known in PROMISES:
        bits = " or ".join(f"{count}-bit" for count in known.w_bits)
        grid = {None: "", True: "symmetric", False: "asymmetric"}[known.w_sym]
        weights = ", ".join(part for part in (f"`{known.storage}`", bits, grid, "R4" if known.r4 else "") if part)
        activations = " or ".join(str(count) for count in known.a_bits)
        word = known.served.format(w="4" if known.w_bits == (4,) else "n")
        flag = f"`{known.flag}` serves it as declared" if known.flag else ""
        notes = "; ".join(part for part in (flag, known.note, "" if known.run else "*unverified*") if part)
        cells = (known.engine, weights, activations, known.device or "both", word, notes)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
