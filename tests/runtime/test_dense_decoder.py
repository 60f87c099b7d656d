"""Decoding in 16 bits as one native call: what the modules compute, up to their rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dfrot.generation.output import StopCriteria
from dfrot.generation.plain import plain
from dfrot.generation.sampling import Sampling
from dfrot.generation.target import Target
from dfrot.quant.config import DfqConfig
from dfrot.quant.scheme import QuantScheme
from dfrot.rotation.online import HadamardSpec, OnlineRotations
from dfrot.runtime.dense_decoder import DenseDecoder
from dfrot.runtime.described.cache import GROWTH
from dfrot.runtime.load import load_for_decoding
from dfrot_kernels import native

pytestmark = pytest.mark.skipif(not native.active(), reason="no native library")
PLAIN = {"attention_bias": False, "mlp_bias": False}  # the kit's Llama has biases
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.06}  # of logits near 1


def decoder_of(model: Any) -> DenseDecoder:
    decode = model.model.decode
    assert decode is not None
    return decode.__self__  # type: ignore[no-any-return]


def steps(model: Any, prompt: Tensor, tokens: Tensor) -> Tensor:
    """Logits [n, V] of single steps behind a prompt."""
    target = Target(model, drafted=False)
    cache = target.start()
    target.prefill(prompt, cache)
    return torch.stack([target.step(int(token), cache) for token in tokens])


def compare(model: Any, prompt: Tensor, tokens: Tensor, tolerance: float) -> None:
    decoder = decoder_of(model)
    assert decoder.unfit is None
    before = decoder.steps
    served = steps(model, prompt, tokens)
    assert decoder.steps == before + len(tokens)
    model.model.decode = None
    expected = steps(model, prompt, tokens)
    model.model.decode = decoder.step
    scale = float(expected.abs().max())
    assert float((served - expected).abs().max()) <= tolerance * scale
    assert not torch.equal(served[0], served[1])


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["float32", "bfloat16"])
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3"])  # plain; with biases; with norms of heads
def test_steps_agree_with_the_modules(
    kit: Any, ids: Tensor, tmp_path: Path, model_type: str, dtype: torch.dtype
) -> None:
    sizes = {} if model_type == "qwen2" else PLAIN
    model = load_for_decoding(kit.build(tmp_path / "m", model_type, dtype=dtype, **sizes))
    compare(model, ids[0][:7], ids[0][7:20], TOLERANCE[dtype])


@pytest.mark.parametrize("packed", [False, True])
def test_biases_of_every_linear(kit: Any, ids: Tensor, tmp_path: Path, packed: bool, isa: str) -> None:
    """Sizes that fill no whole tile, every number of threads: the modules' logits, and the same bits."""
    odd = {"intermediate_size": 72, "attention_bias": True, "mlp_bias": True}
    folder = kit.build(tmp_path / "m", dtype=torch.float32, **odd)
    if packed:
        folder = kit.pack(folder, tmp_path / "p", DfqConfig(QuantScheme.parse("w4a16kv16")))
    model = load_for_decoding(folder)
    compare(model, ids[0][:7], ids[0][7:20], 1e-4)
    before, logits = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            logits.append(steps(model, ids[0][:7], ids[0][7:10]))
    finally:
        torch.set_num_threads(before)
    assert torch.allclose(logits[0], logits[1], atol=1e-5)


def test_the_greedy_text_of_a_model_with_biases(kit: Any, ids: Tensor, tmp_path: Path) -> None:
    model = load_for_decoding(kit.build(tmp_path / "m", "qwen2", dtype=torch.float32))
    decoder = decoder_of(model)
    texts = []
    for decode in (decoder.step, None):
        model.model.decode = decode
        texts.append(plain(Target(model, drafted=False), ids[0][:7].tolist(), StopCriteria(24), Sampling()).tokens)
    assert decoder.steps >= 20
    assert texts[0] == texts[1]


def test_weights_of_four_bits(kit: Any, ids: Tensor, tmp_path: Path) -> None:
    source = kit.build(tmp_path / "m", dtype=torch.bfloat16, **PLAIN)
    config = DfqConfig(QuantScheme.parse("w4a16-g16"), sink_tokens=4)
    compare(load_for_decoding(kit.pack(source, tmp_path / "p", config)), ids[0][:7], ids[0][7:20], 0.06)


def test_buffers_grow_while_it_decodes(kit: Any, ids: Tensor, tmp_path: Path) -> None:
    model = load_for_decoding(kit.build(tmp_path / "m", dtype=torch.float32, **PLAIN))
    compare(model, ids[0][:2], ids[0][:5].repeat(GROWTH // 5 + 3), 1e-4)


def test_texts_side_by_side(kit: Any, ids: Tensor, tmp_path: Path) -> None:
    """Every text has its own cache, and the table of one is not used for the other."""
    model = load_for_decoding(kit.build(tmp_path / "m", dtype=torch.float32, **PLAIN))
    target = Target(model, drafted=False)
    alone = [steps(model, ids[0][:count], ids[0][count : count + 4]) for count in (3, 6)]
    caches = [target.start(), target.start()]
    for count, cache in zip((3, 6), caches):
        target.prefill(ids[0][:count], cache)
    for turn in range(4):
        for count, cache, expected in zip((3, 6), caches, alone):
            assert torch.equal(target.step(int(ids[0][count + turn]), cache), expected[turn])


def test_a_hook_takes_the_way_through_the_modules(kit: Any, ids: Tensor, tmp_path: Path) -> None:
    model = load_for_decoding(kit.build(tmp_path / "m", **PLAIN))
    calls: list[int] = []
    handle = model.model.layers[1].mlp.register_forward_hook(lambda *_: calls.append(1))
    steps(model, ids[0][:3], ids[0][3:5])
    assert len(calls) == 3
    assert decoder_of(model).steps == 0
    handle.remove()
    steps(model, ids[0][:3], ids[0][3:5])
    assert decoder_of(model).steps == 2


def test_a_first_token_and_longer_calls_are_left_to_the_modules(kit: Any, ids: Tensor, tmp_path: Path) -> None:
    model = load_for_decoding(kit.build(tmp_path / "m", **PLAIN))
    target = Target(model, drafted=False)
    cache = target.start()
    target.prefill(ids[0][:1], cache)
    target.prefill(ids[0][1:4], cache)
    assert decoder_of(model).steps == 0
    assert cache.get_seq_length() == 4


@pytest.mark.parametrize(
    ("scheme", "reason"),
    [("w4a8kv16", "quantized or rotated"), ("w8a16kv16", "tiles")],
)
def test_what_it_does_not_serve(kit: Any, ids: Tensor, tmp_path: Path, scheme: str, reason: str) -> None:
    folder = kit.build(tmp_path / "m", **PLAIN)
    folder = kit.pack(folder, tmp_path / "p", DfqConfig(QuantScheme.parse(scheme)))
    model = load_for_decoding(folder)
    assert reason in (decoder_of(model).unfit or "")
    steps(model, ids[0][:3], ids[0][3:5])
    assert decoder_of(model).steps == 0


def test_a_rotated_input_is_not_served(kit: Any, tmp_path: Path) -> None:
    online = OnlineRotations(None, HadamardSpec(96, 96, (12,)))
    config = DfqConfig(QuantScheme.parse("w4a16kv16"), online=online)
    model = load_for_decoding(kit.pack(kit.build(tmp_path / "m", **PLAIN), tmp_path / "p", config))
    assert decoder_of(model).unfit == "quantized or rotated activations"
    assert kit.configs["llama"]["intermediate_size"] == 96
