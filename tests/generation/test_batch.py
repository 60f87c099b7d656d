"""Steps of a batch: every sequence has the bits that it has alone, and prompts that begin alike share it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dfrot.bench.models.presets import preset
from dfrot.bench.models.random_model import random_checkpoint
from dfrot.errors import ResourceError
from dfrot.files import read_json, write_json
from dfrot.generation.batch import Batch, BatchedSequence
from dfrot.generation.prefix_store import PrefixStore
from dfrot.generation.target import Target
from dfrot.runtime.load import load_model
from dfrot_kernels import native

pytestmark = pytest.mark.skipif(not native.active(), reason="no native library")

CHUNK, NEW = 24, 4
LENGTHS = (1, 5, 23, 24, 25, 60, 130)
MISTRAL: dict[str, Any] = {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 40}


@pytest.fixture(autouse=True)
def poison() -> Iterator[None]:
    """Memory that nobody has written holds NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def load(folder: Path, scheme: str = "w4a4kv4", sinks: int = 0, **changes: Any) -> Target:
    path = random_checkpoint(folder / "packed", {**preset("tiny"), **changes}, scheme, 1)
    if sinks:
        config = read_json(path / "config.json")
        config["quantization_config"]["sink_tokens"] = sinks
        write_json(path / "config.json", config)
    return Target(load_model(path), drafted=False)


def make_prompt(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(1000 * seed + length)
    return torch.randint(3, 320, (length,), generator=generator).tolist()  # type: ignore[no-any-return]


def read(batch: Batch, prompt: list[int], new: int = NEW) -> tuple[BatchedSequence, Tensor]:
    sequence = batch.start(prompt, len(prompt) + new)
    while (logits := batch.read(sequence)) is None:
        pass
    return sequence, logits


@torch.inference_mode()
def alone(target: Target, prompt: list[int]) -> Tensor:
    """Logits [NEW, V] behind a prompt that is read in chunks and continued by calls of its own."""
    cache = target.start()
    for begin in range(0, len(prompt), CHUNK):
        ids = torch.tensor([prompt[begin : begin + CHUNK]])
        out = target.decoder(input_ids=ids, past_key_values=cache, use_cache=True)
    rows = [target.logits_rows(out.last_hidden_state[:, -1:])[0, 0].float()]
    while len(rows) < NEW:
        rows.append(target.step(int(rows[-1].argmax()), cache))
    return torch.stack(rows)


def together(batch: Batch, prompts: list[list[int]]) -> list[Tensor]:
    """The same of several prompts, in one batch. Their memory is given back."""
    sequences, rows = [], []
    for prompt in prompts:
        sequence, logits = read(batch, prompt)
        sequences.append(sequence)
        rows.append([logits])
    for _ in range(NEW - 1):
        for of_one, logits in zip(rows, batch.step(sequences, [int(of_one[-1].argmax()) for of_one in rows])):
            of_one.append(logits)
    for sequence in sequences:
        batch.end(sequence)
    return [torch.stack(of_one) for of_one in rows]


def check(target: Target, prompts: list[list[int]]) -> None:
    batch = Batch(target, CHUNK)
    assert batch.unfit is None
    for prompt, logits in zip(prompts, together(batch, prompts), strict=True):
        assert torch.equal(logits, alone(target, prompt))
    assert batch.reserved == 0


@pytest.mark.parametrize("threads", [1, 3])
def test_every_instruction_set(threads: int, tmp_path: Path, isa: str) -> None:
    torch.set_num_threads(threads)
    check(load(tmp_path), [make_prompt(length) for length in LENGTHS])


@pytest.mark.parametrize("scheme", ["w4a8kv4-wasym", "w4a16kv4", "w4a8kv8-g32-sym", "w4a4kv3", "w4a8kv4-kvsym"])
def test_schemes(scheme: str, tmp_path: Path) -> None:
    torch.set_num_threads(2)
    check(load(tmp_path, scheme), [make_prompt(length) for length in (3, 30, 50)])


def test_sinks_and_windows(tmp_path: Path) -> None:
    """A prompt shorter than the sinks begins with steps of its own."""
    check(load(tmp_path, sinks=6, **MISTRAL), [make_prompt(length) for length in (2, 4, 7, 60)])


def test_the_limits_of_tiles_and_cache_parts(tmp_path: Path) -> None:
    shape: dict[str, Any] = {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 16}
    check(load(tmp_path, **shape), [make_prompt(length) for length in (126, 127, 510, 511, 512)])


def test_more_sequences_than_a_call_takes(tmp_path: Path) -> None:
    check(load(tmp_path), [make_prompt(1 + seed % 7, seed) for seed in range(19)])


def test_a_shared_beginning_is_computed_once_and_changes_nothing(tmp_path: Path) -> None:
    target = load(tmp_path, sinks=2)
    batch = Batch(target, CHUNK)
    common = make_prompt(2 * CHUNK)
    prompts = [common + make_prompt(7, seed) for seed in range(3)] + [common]
    shared = []
    for prompt in prompts:
        sequence, logits = read(batch, prompt)
        shared.append(sequence.shared)
        assert torch.equal(logits, alone(target, prompt)[0])
        batch.end(sequence)
    assert shared == [0, 2 * CHUNK, 2 * CHUNK, CHUNK], "of a known prompt the last token at least is read again"
    assert len(batch.prefixes) == 2


@torch.inference_mode()
def test_beginnings_that_were_not_used_for_longest_are_forgotten(tmp_path: Path) -> None:
    target = load(tmp_path)
    layers = read(Batch(target, CHUNK, prefix_bytes=0), make_prompt(3 * CHUNK))[0].cache.layers
    one = sum(part.numel() * part.element_size() for layer in layers for part in layer.stored(0, CHUNK))
    store = PrefixStore(CHUNK, 3 * one)
    first, second = make_prompt(3 * CHUNK, 1), make_prompt(3 * CHUNK, 2)
    for end in (CHUNK, 2 * CHUNK):
        store.keep(first, end, layers)
    store.keep(second, CHUNK, layers)
    assert store.bytes == 3 * one
    assert store.restore(second, layers) == CHUNK
    store.keep(second, 2 * CHUNK, layers)
    assert (store.restore(first, layers), store.restore(second, layers)) == (CHUNK, 2 * CHUNK)
    assert store.bytes == 3 * one
    assert PrefixStore(CHUNK, 0).restore(first, layers) == 0


def test_memory_is_bounded(tmp_path: Path) -> None:
    target = load(tmp_path)
    batch = Batch(target, CHUNK, cache_bytes=Batch(target).bytes_for(100))
    sequence = batch.start([5, 6], 60)
    assert batch.has_room(40)
    assert not batch.has_room(41)
    with pytest.raises(ResourceError, match="a cache of 41 positions"):
        batch.start([5, 6], 41)
    batch.end(sequence)
    assert batch.has_room(100)


def test_what_cannot_be_batched_says_why(tmp_path: Path) -> None:
    assert "16 bits" in str(Batch(load(tmp_path, "w4a8kv16")).unfit)


@torch.inference_mode()
def test_calls_outside_the_limits_are_refused(tmp_path: Path) -> None:
    target = load(tmp_path, sinks=4)
    batch = Batch(target, CHUNK)
    sequence, _ = read(batch, make_prompt(3))
    decoder = target.native.decoder
    hidden = torch.zeros(1, decoder.shape.hidden, dtype=decoder.shape.dtype)
    tables, angles = sequence.table[None], torch.zeros(1, decoder.shape.head_dim)
    with pytest.raises(RuntimeError, match="limits"):  # a sink
        decoder.run_batch(hidden, tables, angles, angles, torch.tensor([3]))
    with pytest.raises(ValueError, match="takes 16 lines"):
        decoder.run_batch(hidden.expand(17, -1), tables, angles, angles, torch.tensor([9]))
    with pytest.raises(ValueError, match="caches"):
        decoder.run_batch(hidden, tables, angles, angles, torch.tensor([9, 9]))
