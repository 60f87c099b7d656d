"""Train a tiny draft on a packed checkpoint and generate with it: the same tokens as without.

python examples/speculative.py [FOLDER]     reads FOLDER/packed, which quantize.py writes
"""

from __future__ import annotations

import sys
from pathlib import Path

import dfrot
from dfrot.draft.store import load_draft
from dfrot.generation.speculation.tree import TreeShape
from dfrot.stages.draft.generate import custom_generate
from dfrot.stages.draft.settings import DataSettings, DraftSettings
from dfrot.stages.draft.train import train


def main(folder: Path) -> None:
    packed = folder / "packed"
    data = DataSettings(dataset="stdlib", samples=32, held_out=4, seqlen=64)
    record = train(packed, folder / "draft", DraftSettings(quantize="w4", data=data))
    print(f"simulated acceptance length: {record['history'][-1]['simulated_tau']:.2f}")
    model, tokenizer = dfrot.load(packed)
    ids = tokenizer("class Reader:\n    def read(self):", return_tensors="pt").input_ids
    plain = model.generate(ids, max_new_tokens=32, do_sample=False)
    speculate = custom_generate(model, load_draft(folder / "draft"), shape=TreeShape(2))  # chains of two draft tokens
    drafted = model.generate(ids, custom_generate=speculate, max_new_tokens=32, do_sample=False)
    print(tokenizer.decode(drafted[0]))
    print(f"identical to plain decoding: {plain.equal(drafted)}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "build/examples"))
