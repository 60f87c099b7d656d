"""Folders with random faults in config, index and tensors: dfq computes what transformers computes, or refuses."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dfrot.arch import open_described
from dfrot.errors import DfqError
from dfrot.runtime.transformers_reading import check_reading

KINDS: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": False},
    "qwen2": {"tie_word_embeddings": True},
    "mistral": {},
    "gemma2": {},
    "mixtral": {},
    "phi3": {"tie_word_embeddings": True},
}
SMALL = {"hidden_size": 32, "intermediate_size": 40, "vocab_size": 64, "num_hidden_layers": 2, "head_dim": 8}
CLOSE = 1e-4  # relative difference of logits
Tensors, Config = dict[str, Tensor], dict[str, Any]
PREFIXES = ["_orig_mod.", "module.", "base_model.model.", "language_model.", "model.", "transformer."]


class Folder:
    """What is written: tensors by file, the index, the configuration."""

    def __init__(self, source: Path, rng: random.Random) -> None:
        self.rng, self.done = rng, list[str]()
        self.config: Config = json.loads((source / "config.json").read_text())
        self.shards: dict[str, Tensors] = {"model.safetensors": load_file(source / "model.safetensors")}
        self.index: dict[str, str] | None = None
        self.files: dict[str, str] = {}

    @property
    def tensors(self) -> Tensors:
        """Those of the largest file."""
        return max(self.shards.values(), key=len)

    def name(self, *endings: str) -> str:
        """A random tensor, of those that end so."""
        names = [name for name in self.tensors if not endings or name.endswith(endings)]
        return self.rng.choice(sorted(names) or sorted(self.tensors))

    def write(self, path: Path) -> Path:
        path.mkdir()
        for file, tensors in self.shards.items():
            save_file({name: t.clone().contiguous() for name, t in tensors.items()}, path / file, {"format": "pt"})
        (path / "config.json").write_text(json.dumps(self.config))
        if self.index is not None:
            (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": self.index}))
        for file, text in self.files.items():
            (path / file).write_text(text)
        return path


def split(folder: Folder) -> None:
    """Two shards with an index."""
    if folder.index is not None:
        return
    tensors = folder.shards.pop("model.safetensors")
    names = sorted(tensors)
    files = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    halves = names[: len(names) // 2], names[len(names) // 2 :]
    folder.shards.update({file: {n: tensors[n] for n in half} for file, half in zip(files, halves)})
    folder.index = {name: file for file, half in zip(files, halves) for name in half}


def repeat_in_other_shard(folder: Folder) -> None:
    split(folder)
    (first, second), name = sorted(folder.shards)[:2], folder.name()
    source, other = (first, second) if name in folder.shards[first] else (second, first)
    value = folder.shards[source].get(name)
    if value is not None:
        folder.shards[other][name] = value + folder.rng.choice([0.0, 1.0])


def single_beside_index(folder: Folder) -> None:
    split(folder)
    merged = {name: tensor for tensors in folder.shards.values() for name, tensor in tensors.items()}
    folder.shards["model.safetensors"] = {n: t + folder.rng.choice([0.0, 0.5]) for n, t in merged.items()}


def index_of_another_shard(folder: Folder) -> None:
    split(folder)
    assert folder.index is not None
    folder.index[folder.rng.choice(sorted(folder.index))] = folder.rng.choice(sorted(folder.shards))


def index_leaves_out(folder: Folder) -> None:
    split(folder)
    assert folder.index is not None
    folder.index.pop(folder.rng.choice(sorted(folder.index)))


def other_head(folder: Folder) -> None:
    embed = folder.tensors.get("model.embed_tokens.weight")
    if embed is not None:
        scale = folder.rng.choice([0.0, 1.0])
        folder.tensors["lm_head.weight"] = embed + scale * torch.randn(embed.shape)


def tie(folder: Folder) -> None:
    folder.config["tie_word_embeddings"] = folder.rng.choice([True, False, None])


def head_in_place_of_embedding(folder: Folder) -> None:
    embed = folder.tensors.pop("model.embed_tokens.weight", None)
    if embed is not None:
        folder.tensors["lm_head.weight"] = embed


def bias(folder: Folder) -> None:
    name = folder.name("_proj.weight", "w1.weight", "gate.weight", "lm_head.weight", "norm.weight")
    rows = folder.tensors[name].shape[0]
    folder.tensors[name.removesuffix("weight") + "bias"] = torch.randn(rows) * folder.rng.choice([0.0, 1.0])


def remove(folder: Folder) -> None:
    folder.tensors.pop(folder.name())


def rename(folder: Folder) -> None:
    name = folder.name()
    folder.tensors[folder.rng.choice(["extra.", "model."]) + name] = folder.tensors.pop(name)


def prefix(folder: Folder) -> None:
    text = folder.rng.choice(PREFIXES)
    for tensors in folder.shards.values():
        for name in list(tensors):
            tensors[text + name] = tensors.pop(name)
    if folder.index is not None:
        folder.index = {text + name: file for name, file in folder.index.items()}


def without_model(folder: Folder) -> None:
    for tensors in folder.shards.values():
        for name in list(tensors):
            tensors[name.removeprefix("model.")] = tensors.pop(name)


def dtype(folder: Folder) -> None:
    name = folder.name()
    kinds = [torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int8, torch.int32]
    folder.tensors[name] = folder.tensors[name].to(folder.rng.choice(kinds))


def all_float64(folder: Folder) -> None:
    folder.tensors.update({name: tensor.double() for name, tensor in folder.tensors.items()})


def shape(folder: Folder) -> None:
    name = folder.name()
    tensor = folder.tensors[name]
    folder.tensors[name] = folder.rng.choice([tensor[:-1], tensor.T, tensor[None], tensor.flatten()])


def swap(folder: Folder) -> None:
    first, second = folder.name(), folder.name()
    folder.tensors[first], folder.tensors[second] = folder.tensors[second], folder.tensors[first]


def leave_out(folder: Folder) -> None:
    folder.config.pop(folder.rng.choice(sorted(folder.config)), None)


def null(folder: Folder) -> None:
    folder.config[folder.rng.choice(sorted(folder.config))] = None


def other_number(folder: Folder) -> None:
    numbers = [key for key, value in folder.config.items() if isinstance(value, int | float)]
    key = folder.rng.choice(sorted(numbers))
    folder.config[key] = folder.rng.choice([0, 1, 2, 3, 8, -1, 0.5, True, False, "2"])


def other_type(folder: Folder) -> None:
    folder.config["model_type"] = folder.rng.choice([*KINDS, "qwen3", "granite", "olmo2", "gpt2", "llava", None])


def switch(folder: Folder) -> None:
    key = folder.rng.choice(["attention_bias", "mlp_bias", "use_sliding_window", "qkv_bias"])
    folder.config[key] = folder.rng.choice([True, False])


def config_dtype(folder: Folder) -> None:
    folder.config["dtype"] = folder.rng.choice(["auto", "float64", "float16", "bfloat16", "int8", None])


def adapter(folder: Folder) -> None:
    folder.files["adapter_config.json"] = "{}"


def leftover(folder: Folder) -> None:
    folder.shards["model-00007-of-00009.safetensors"] = {"model.norm.weight": torch.zeros(32)}


FAULTS: tuple[Callable[[Folder], None], ...] = (
    *(split, repeat_in_other_shard, single_beside_index, index_of_another_shard, index_leaves_out, other_head, tie),
    *(head_in_place_of_embedding, bias, bias, remove, rename, prefix, without_model, dtype, all_float64, shape, swap),
    *(leave_out, leave_out, null, other_number, other_number, other_type, switch, config_dtype, adapter, leftover),
)


def reason(error: DfqError) -> str:
    """A refusal without what is particular to one folder."""
    message = str(error)
    for text, short in REASONS.items():
        if text in message:
            return short
    return message.rpartition(": ")[2][:80]


REASONS = {
    "holds an adapter": "adapter",
    "two sets of weights": "two sets of weights",
    "differs from the one in": "tensor differs between shards",
    "the index lists it": "index names a tensor that its shard lacks",
    "is missing": "tensor missing",
    "is not part of a": "tensor of no described name",
    "is a bias that": "bias that the model class lacks",
    "config.json needs": "shape",
    "refused by transformers": "configuration refused by transformers",
    "builds no model": "configuration refused by transformers",
    "is unknown": "unknown model_type",
    "positive integer is needed": "size is no positive integer",
    "is not a multiple": "sizes do not divide",
    "holds FP8": "FP8 without scales",
    "is not a weight's": "integers in place of weights",
    "transformers as": "configuration read differently",
    "by transformers than by dfq": "bytes read differently",
    "is stored twice": "stored twice",
    "holds NaN or Inf": "NaN",
}


def run(readings: Any, sources: dict[str, Path], place: Path, seed: int) -> str:
    """One mutant: "equal", or why it was refused. Fails where dfq reads something else than transformers."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    folder = Folder(sources[rng.choice(sorted(sources))], rng)
    faults = rng.choices(FAULTS, k=rng.choice([1, 1, 1, 2, 3]))
    for fault in faults:
        fault(folder)
    names = [fault.__name__ for fault in faults]
    shutil.rmtree(place, ignore_errors=True)
    path = folder.write(place)
    refusal = None
    try:
        checkpoint, arch = open_described(path)
        check_reading(checkpoint, arch)
        ours = readings.dfq_logits(path)
    except DfqError as error:
        refusal = error
    if refusal is not None:
        assert "\n" not in str(refusal), (seed, names)
        assert refusal.exit_code == 2, (seed, names, str(refusal))
        return reason(refusal)
    if checkpoint.prefix:  # transformers would start all weights at random: the folder without its prefix counts
        for tensors in folder.shards.values():
            for name in list(tensors):
                tensors[name.removeprefix(checkpoint.prefix)] = tensors.pop(name)
        if folder.index is not None:
            folder.index = {name.removeprefix(checkpoint.prefix): file for name, file in folder.index.items()}
        shutil.rmtree(place)
        folder.write(place)
    try:
        theirs = readings.transformers_logits(path)
    except Exception:  # transformers raises many kinds
        return "read, though transformers does not load it"
    assert readings.difference(ours, theirs) < CLOSE, (seed, names, checkpoint.resolved)
    return "equal"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, kit: SimpleNamespace) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("sources")
    return {kind: kit.build(root / kind, kind, **SMALL, **changes) for kind, changes in KINDS.items()}


def test_faults_are_resolved_or_refused(readings: Any, sources: dict[str, Path], tmp_path: Path) -> None:
    seeds = [*range(60), 757, 5339, 5637]  # the last three once ended in a traceback
    counts = Counter(run(readings, sources, tmp_path / "m", seed) for seed in seeds)
    assert 0 < counts["equal"] < len(seeds)


@pytest.mark.slow  # ten thousand folders take some minutes of one core
def test_ten_thousand_faults(
    readings: Any, sources: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = Counter(run(readings, sources, tmp_path / "m", seed) for seed in range(10_000))
    with capsys.disabled():
        print()
        for text, count in counts.most_common():
            print(f"{count:6} {text}")
    assert counts["equal"] > 1000
