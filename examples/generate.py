"""Load a packed checkpoint in transformers and generate text.

python examples/generate.py [FOLDER]     reads FOLDER/packed, which quantize.py writes
"""

from __future__ import annotations

import sys
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

import dfrot  # noqa: F401  # registers dfq checkpoints with transformers


def main(folder: Path) -> None:
    packed = folder / "packed"
    tokenizer = AutoTokenizer.from_pretrained(packed)
    model = AutoModelForCausalLM.from_pretrained(packed)
    inputs = tokenizer("def read(self, size):", return_tensors="pt")
    output = model.generate(inputs.input_ids, max_new_tokens=24, do_sample=False)
    print(tokenizer.decode(output[0]))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "build/examples"))
