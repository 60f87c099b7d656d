"""A tree in one native call: every node is what it is when its ancestors alone precede it, to the last bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dfrot.bench.models.presets import preset
from dfrot.bench.models.random_model import random_checkpoint
from dfrot.files import read_json, write_json
from dfrot.generation.native_verify import branches
from dfrot.generation.target import Target
from dfrot.runtime.load import load_model
from dfrot_kernels import native

pytestmark = pytest.mark.skipif(not native.active(), reason="no native library")

BUSHY = [-1, 0, 0, 0, 1, 1, 2, 4, 4, 5]
CROSSED = [-1, 0, 1, 0, 2, 3, 4, 5, 1, 6, 7, 0, 9, 11, 12, 13]  # branches whose nodes lie between one another's
MISTRAL: dict[str, Any] = {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 40}


def target(folder: Path, scheme: str, sinks: int = 0, **changes: Any) -> Target:
    made = random_checkpoint(folder / "packed", {**preset("tiny"), **changes}, scheme, 1)
    if sinks:
        config = read_json(made / "config.json")
        config["quantization_config"]["sink_tokens"] = sinks
        write_json(made / "config.json", config)
    return Target(load_model(made))


def stored(cache: Any) -> list[Tensor]:
    """All bytes of a cache up to its length."""
    return [part[: layer.length] for layer in cache.layers for store in layer.packed for part in store.parts]


def path_to(node: int, parents: list[int]) -> list[int]:
    found = [node]
    while parents[found[-1]] >= 0:
        found.append(parents[found[-1]])
    return found[::-1]


@torch.inference_mode()
def check(one: Target, past: int, parents: list[int]) -> None:
    source = torch.Generator().manual_seed(past)
    prompt = torch.randint(3, 320, (past,), generator=source)
    tokens = torch.randint(3, 320, (len(parents),), generator=source).tolist()
    cache = one.start()
    one.prefill(prompt, cache)
    before = one.native.report()
    features, logits = one.verify(tokens, parents, cache)
    assert one.native.report() == {**before, "steps": before["steps"] + 1}, "one call"
    leaves = [node for node in range(len(parents)) if node not in parents]
    one.keep(cache, past, len(parents), path_to(leaves[-1], parents))
    kept = [part.clone() for part in stored(cache)]
    for leaf in leaves:  # the last one leaves what was kept
        one.keep(cache, past, cache.get_seq_length() - past, [])
        for node in path_to(leaf, parents):
            assert torch.equal(one.step(tokens[node], cache), logits[node])
    assert all(torch.equal(a, b) for a, b in zip(kept, stored(cache), strict=True))
    assert features.shape == (len(parents), one.config.hidden_size)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("parents", [BUSHY, CROSSED])
def test_every_instruction_set(parents: list[int], threads: int, tmp_path: Path, isa: str) -> None:
    torch.set_num_threads(threads)
    check(target(tmp_path, "w4a4kv4"), 20, parents)


@pytest.mark.parametrize("past", [1, 126, 510, 700])
def test_where_tiles_and_stretches_end(past: int, tmp_path: Path) -> None:
    """The attention takes 128 positions at once and cuts at 512: a branch crosses as if it were alone."""
    shape: dict[str, Any] = {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 16}
    check(target(tmp_path, "w4a4kv4", **shape), past, CROSSED)


@pytest.mark.parametrize("scheme", ["w4a8kv4-kvsym", "w4a4kv3", "w4a16kv8"])
def test_other_caches(scheme: str, tmp_path: Path) -> None:
    check(target(tmp_path, scheme), 30, BUSHY)


@pytest.mark.parametrize("past", [25, 37, 90])
def test_sliding_windows(past: int, tmp_path: Path) -> None:
    check(target(tmp_path, "w4a4kv4", **MISTRAL), past, CROSSED)


def test_exact_sinks(tmp_path: Path) -> None:
    check(target(tmp_path, "w4a4kv4", sinks=4), 20, BUSHY)


@torch.inference_mode()
def test_larger_trees_go_branch_by_branch(tmp_path: Path) -> None:
    one = target(tmp_path, "w4a4kv4")
    parents = [-1, *[0] * 20]
    cache = one.start()
    one.prefill(torch.arange(3, 20), cache)
    _, logits = one.verify(list(range(30, 51)), parents, cache)
    assert one.native.steps == 21
    one.keep(cache, 17, 21, [])
    one.step(30, cache)
    assert torch.equal(one.step(50, cache), logits[20])


def test_what_is_no_tree_is_refused(tmp_path: Path) -> None:
    one = target(tmp_path, "w4a4kv4")
    with torch.inference_mode():
        cache = one.start()
        one.prefill(torch.arange(3, 20), cache)
        hidden, angles = one.embed(torch.tensor([[5, 6, 7]])), torch.ones(3, one.native.decoder.shape.head_dim)
        table = one.native._caches(one.native.decoder, cache.layers, 20, 1, hidden)
        with pytest.raises(RuntimeError, match="limits"):
            one.native.decoder.run_tree(hidden, table, angles, angles, 17, torch.tensor([-1, 1, 0]))
        with pytest.raises(ValueError, match="takes 16"):
            one.native.serve_tree(one.decoder, [5] * 17, [-1] * 17, cache)


def test_branches_visit_every_node_behind_its_ancestors() -> None:
    parents = [-1, 0, 0, 1, 1, 2, 3, 6, 5, 5]
    seen: list[int] = []
    stack: list[int] = []
    for depth, run in branches(parents):
        stack = stack[:depth]
        for node in run:
            assert (stack[-1] if stack else -1) == parents[node]
            stack.append(node)
        seen += run
    assert sorted(seen) == list(range(len(parents)))
    assert branches([-1, 0, 1]) == [(0, [0, 1, 2])]
