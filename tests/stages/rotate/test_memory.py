"""`dfq rotate` never holds the model: peak resident memory on a Llama-shaped checkpoint of more than 2 GB."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dfrot.arch import describe
from dfrot.checkpoint_writer import SafetensorsWriter, TensorPlan

CONFIG = {
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
LIMIT = 1.0e9

SCRIPT = """
import json, sys
from pathlib import Path
sys.path[:0] = {path!r}
import torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
import transformers.models.llama.modeling_llama
from dfrot.stages.rotate.settings import RotateSettings
from dfrot.stages.rotate.run import rotate

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

before = peak()
settings = RotateSettings({method!r}, {dataset!r}, seqlen=2048, rounds=2)
seen = []
rotate(Path({model!r}), Path({out!r}), settings, progress=lambda label, done, total: seen.append((label, peak())))
stages = {{}}
for label, high in seen:
    stages[label] = high - before
print(json.dumps({{"baseline": before, "peak": peak() - before, "after": stages}}))
"""


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("big") / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    shapes = describe(CONFIG).tensors()
    writer = SafetensorsWriter(folder, [TensorPlan(n, torch.bfloat16, s) for n, s in shapes.items()])
    generator = torch.Generator().manual_seed(0)
    for name, shape in shapes.items():
        value = torch.randn(shape, generator=generator) * shape[-1] ** -0.5
        writer.write(name, (value if len(shape) == 2 else value + 1).bfloat16())
    assert sum(path.stat().st_size for path in folder.iterdir()) > 2e9
    tokenizer(folder)
    return folder


def tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({symbol: n for n, symbol in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["hadamard", "orthogonal", "dfrot"])
def test_peak_memory(big: Path, tmp_path: Path, method: str) -> None:
    text = tmp_path / "text.txt"
    text.write_text("".join(f"line {n}: the square of {n} is {n * n}.\n" for n in range(3000)))
    code = SCRIPT.format(
        path=[p for p in sys.path if p], method=method, dataset=str(text), model=str(big), out=str(tmp_path / "out")
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["peak"] < LIMIT, figures
    print(method, figures)
