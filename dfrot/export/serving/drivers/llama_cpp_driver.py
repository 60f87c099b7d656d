"""llama.cpp on one GGUF file: `python -I llama_cpp_driver.py REQUEST ANSWER`, in an environment that need not have dfq.

Reads the JSON file REQUEST and writes the JSON file ANSWER, as `dfrot/export/serving/driving.py` describes them.
Which kernel multiplies a tensor follows from its type: the file's header is read here, for the package does not say.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Any, BinaryIO

PACKAGES = ("llama-cpp-python", "numpy")
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of a metadata value, by its type
TEXT, ARRAY = 8, 9
NAMES = {0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 30: "BF16", 39: "MXFP4"}


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Load the file; tensor types, losses and greedy tokens."""
    import llama_cpp

    folder = Path(request["folder"])
    file = next(iter(sorted(folder.glob("*.gguf")))) if folder.is_dir() else folder
    longest = max(len(window) for window in request["windows"])
    model = llama_cpp.Llama(
        model_path=str(file),
        n_ctx=max(longest, len(request["prompt"]) + request["new_tokens"]) + 1,
        n_batch=512,
        logits_all=True,
        n_threads=request["threads"],
        n_threads_batch=request["threads"],
        verbose=False,
        **request["options"],
    )
    return {
        "linears": tensor_types(file),
        "losses": [token_losses(model, window) for window in request["windows"]],
        "tokens": greedy(model, request["prompt"], request["new_tokens"]),
    }


def token_losses(model: Any, window: list[int]) -> list[float]:
    """Negative log-likelihood of tokens 1 .. n - 1."""
    import numpy as np

    model.reset()
    model.eval(window)
    logits = np.array(model.scores[: len(window) - 1], dtype=np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    chosen = logits[np.arange(len(logits)), window[1:]]
    return [float(loss) for loss in np.log(np.exp(logits).sum(axis=1)) - chosen]


def greedy(model: Any, prompt: list[int], count: int) -> list[int]:
    """`count` greedy tokens behind `prompt`."""
    import numpy as np

    model.reset()
    model.eval(prompt)
    tokens: list[int] = []
    for _ in range(count):
        tokens.append(int(np.argmax(model.scores[len(prompt) + len(tokens) - 1])))
        model.eval(tokens[-1:])
    return tokens


def tensor_types(file: Path) -> dict[str, int]:
    """How many matrices of blocks have each type."""
    counts: dict[str, int] = {}
    with file.open("rb") as handle:
        _, _, tensors, values = struct.unpack("<IIQQ", handle.read(24))
        for _ in range(values):
            read_text(handle)
            skip_value(handle, number(handle, "<I"))
        for _ in range(tensors):
            name = read_text(handle)
            dimensions = number(handle, "<I")
            handle.read(8 * dimensions)
            kind = number(handle, "<I")
            handle.read(8)
            if dimensions == 2 and name.startswith("blk."):
                label = NAMES.get(kind, f"type {kind}")
                counts[label] = counts.get(label, 0) + 1
    return counts


def number(handle: BinaryIO, layout: str) -> int:
    """One integer."""
    return int(struct.unpack(layout, handle.read(struct.calcsize(layout)))[0])


def read_text(handle: BinaryIO) -> str:
    """A string behind its length."""
    return handle.read(number(handle, "<Q")).decode()


def skip_value(handle: BinaryIO, kind: int) -> None:
    """Read past a metadata value."""
    if kind == TEXT:
        handle.seek(number(handle, "<Q"), 1)
    elif kind == ARRAY:
        item = number(handle, "<I")
        count = number(handle, "<Q")
        if item in SIZES:
            handle.seek(SIZES[item] * count, 1)
        else:
            for _ in range(count):
                skip_value(handle, item)
    else:
        handle.seek(SIZES[kind], 1)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))  # which -I leaves out
    from driver_script import answer_request  # type: ignore[import-not-found]

    answer_request(run, PACKAGES)
