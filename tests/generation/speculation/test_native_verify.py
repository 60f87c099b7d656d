"""A tree in one native call: every node has the bits that it has behind its ancestors alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dfrot.bench.models.presets import preset
from dfrot.bench.models.random_model import random_checkpoint
from dfrot.files import read_json, write_json
from dfrot.generation.speculation.native_verify import branches
from dfrot.generation.target import Target
from dfrot.runtime.load import load_model
from dfrot_kernels import native

pytestmark = pytest.mark.skipif(not native.active(), reason="no native library")

BUSHY = [-1, 0, 0, 0, 1, 1, 2, 4, 4, 5]
CROSSED = [-1, 0, 1, 0, 2, 3, 4, 5, 1, 6, 7, 0, 9, 11, 12, 13]  # branches whose nodes are interleaved
MISTRAL: dict[str, Any] = {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 40}


def load(folder: Path, scheme: str, sinks: int = 0, **changes: Any) -> Target:
    path = random_checkpoint(folder / "packed", {**preset("tiny"), **changes}, scheme, 1)
    if sinks:
        config = read_json(path / "config.json")
        config["quantization_config"]["sink_tokens"] = sinks
        write_json(path / "config.json", config)
    return Target(load_model(path))


def cache_bytes(cache: Any) -> list[Tensor]:
    """All bytes of a cache up to its length."""
    return [part[: layer.length] for layer in cache.layers for store in layer.packed for part in store.parts]


def path_to(node: int, parents: list[int]) -> list[int]:
    path = [node]
    while parents[path[-1]] >= 0:
        path.append(parents[path[-1]])
    return path[::-1]


@torch.inference_mode()
def check(target: Target, past: int, parents: list[int]) -> None:
    """A tree behind `past` positions: one call, and the same logits and cache as single steps."""
    generator = torch.Generator().manual_seed(past)
    prompt = torch.randint(3, 320, (past,), generator=generator)
    tokens = torch.randint(3, 320, (len(parents),), generator=generator).tolist()
    cache = target.start()
    target.prefill(prompt, cache)
    before = target.native.report()
    features, logits = target.verify(tokens, parents, cache)
    assert target.native.report() == {**before, "steps": before["steps"] + 1}, "one call"
    leaves = [node for node in range(len(parents)) if node not in parents]
    target.keep(cache, past, len(parents), path_to(leaves[-1], parents))
    after_keep = [part.clone() for part in cache_bytes(cache)]
    for leaf in leaves:  # the last one leaves what was kept
        target.keep(cache, past, cache.get_seq_length() - past, [])
        for node in path_to(leaf, parents):
            assert torch.equal(target.step(tokens[node], cache), logits[node])
    assert all(torch.equal(a, b) for a, b in zip(after_keep, cache_bytes(cache), strict=True))
    assert features.shape == (len(parents), target.config.hidden_size)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("parents", [BUSHY, CROSSED])
def test_every_instruction_set(parents: list[int], threads: int, tmp_path: Path, isa: str) -> None:
    torch.set_num_threads(threads)
    check(load(tmp_path, "w4a4kv4"), 20, parents)


@pytest.mark.parametrize("past", [1, 126, 510, 700])
def test_across_the_limits_of_tiles_and_cache_parts(past: int, tmp_path: Path) -> None:
    """The attention takes 128 positions at once and cuts at 512: a branch crosses as if it were alone."""
    shape: dict[str, Any] = {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 16}
    check(load(tmp_path, "w4a4kv4", **shape), past, CROSSED)


@pytest.mark.parametrize("scheme", ["w4a8kv4-kvsym", "w4a4kv3", "w4a16kv8"])
def test_other_caches(scheme: str, tmp_path: Path) -> None:
    check(load(tmp_path, scheme), 30, BUSHY)


@pytest.mark.parametrize("past", [25, 37, 90])
def test_sliding_windows(past: int, tmp_path: Path) -> None:
    check(load(tmp_path, "w4a4kv4", **MISTRAL), past, CROSSED)


def test_exact_sinks(tmp_path: Path) -> None:
    check(load(tmp_path, "w4a4kv4", sinks=4), 20, BUSHY)


@torch.inference_mode()
def test_larger_trees_go_branch_by_branch(tmp_path: Path) -> None:
    target = load(tmp_path, "w4a4kv4")
    parents = [-1, *[0] * 20]
    cache = target.start()
    target.prefill(torch.arange(3, 20), cache)
    _, logits = target.verify(list(range(30, 51)), parents, cache)
    assert target.native.steps == 21
    target.keep(cache, 17, 21, [])
    target.step(30, cache)
    assert torch.equal(target.step(50, cache), logits[20])


def test_malformed_trees_are_refused(tmp_path: Path) -> None:
    target = load(tmp_path, "w4a4kv4")
    with torch.inference_mode():
        cache = target.start()
        target.prefill(torch.arange(3, 20), cache)
        hidden, angles = target.embed(torch.tensor([[5, 6, 7]])), torch.ones(3, target.native.decoder.shape.head_dim)
        table = target.native._caches(target.native.decoder, cache.layers, 20, 1, hidden)
        with pytest.raises(RuntimeError, match="limits"):
            target.native.decoder.run_tree(hidden, table, angles, angles, 17, torch.tensor([-1, 1, 0]))
        with pytest.raises(ValueError, match="takes 16"):
            target.native.serve_tree(target.decoder, [5] * 17, [-1] * 17, cache)


def test_branches_visit_every_node_behind_its_ancestors() -> None:
    parents = [-1, 0, 0, 1, 1, 2, 3, 6, 5, 5]
    visited: list[int] = []
    stack: list[int] = []
    for depth, chain in branches(parents):
        stack = stack[:depth]
        for node in chain:
            assert (stack[-1] if stack else -1) == parents[node]
            stack.append(node)
        visited += chain
    assert sorted(visited) == list(range(len(parents)))
    assert branches([-1, 0, 1]) == [(0, [0, 1, 2])]
