"""Extraction of training features takes hardly more memory than the target's own pass over the same text."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

LENGTH = 4096
CHILD = """
import json, sys
from pathlib import Path
import torch
from dfrot.bench.models.memory import high_water
from dfrot.draft.training.corpus import load_corpora
from dfrot.generation.load_target import load_target
from dfrot.files import read_json
from dfrot.runtime.block_runner import hf_config
from dfrot.data.tokenizer import load_tokenizer
from dfrot.stages.draft.settings import DataSettings, DraftSettings
from dfrot.stages.draft.extract import extract

torch.set_num_threads(1)
kind, model, text, out, length = sys.argv[1], Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4]), int(sys.argv[5])
data = DataSettings(dataset=text, samples=1, held_out=1, seqlen=length)
hf_config(read_json(model / "config.json"), torch.float32)  # transformers imports lazily: let it do so now
train, _ = load_corpora(text, load_tokenizer(model), data.samples, data.held_out, length, 0)
before = high_water()
if kind == "forward":
    target = load_target(model)
    with torch.no_grad():
        target.decoder(input_ids=train.tokens[:1], use_cache=False)  # without logits
else:
    extract(model, out, DraftSettings(select=kind, data=data))
print(json.dumps({"before": before["now"], "peak": high_water()["peak"]}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["w4a4kv4", "w16a16kv16"])
def test_extraction_at_4k_takes_what_a_pass_takes(scheme: str, reference: Path, tmp_path: Path) -> None:
    """Of a target of 1024 channels, 8 layers and 32 thousand tokens: weights and pass, in processes of their own."""
    from dfrot.bench.models.presets import preset
    from dfrot.bench.models.random_model import random_checkpoint

    sizes = {"hidden_size": 1024, "num_hidden_layers": 8, "intermediate_size": 2816, "num_attention_heads": 16}
    config = {**preset("160m"), **sizes, "num_key_value_heads": 4, "max_position_embeddings": 2 * LENGTH}
    model = random_checkpoint(tmp_path / "model", config, scheme, keep_head=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(reference / name, model / name)
    text = tmp_path / "text.txt"
    text.write_text("".join(f"def value_{n}(self):\n    return {n * n}\n" for n in range(8000)))
    used = {}
    for kind in ("forward", "sample"):
        command = [sys.executable, "-c", CHILD, kind, str(model), str(text), str(tmp_path / kind), str(LENGTH)]
        result = subprocess.run(command, capture_output=True, timeout=900)
        assert result.returncode == 0, result.stderr
        memory = json.loads(result.stdout)
        used[kind] = memory["peak"] - memory["before"]
    print(scheme, {kind: f"{size / 2**20:.0f} MiB" for kind, size in used.items()})
    assert used["forward"] > 2 * 2 * LENGTH * 1024, "a pass that takes nothing would prove nothing"
    assert used["sample"] <= 1.2 * used["forward"], used
