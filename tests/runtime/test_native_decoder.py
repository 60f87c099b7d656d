"""The native decoder against the modules it stands for: the same logits, the same codes in the cache, and a reason
whenever it does not serve."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dfrot.arch import describe
from dfrot.bench.models.random_model import dfq_config
from dfrot.files import read_json
from dfrot.quant.scheme import QuantScheme
from dfrot.runtime.load import load_model
from dfrot_kernels import native

pytestmark = pytest.mark.skipif(not native.active(), reason="needs the native library")

STEPS = (20, 1, 1, 3, 16, 1, 30)  # a prompt, decoding, drafted tokens, another prompt
Make = Callable[..., Any]


@pytest.fixture
def make(tmp_path: Path, kit: SimpleNamespace) -> Make:
    def build(
        model_type: str = "llama",
        scheme: str = "w4a8kv4",
        dtype: torch.dtype = torch.float32,
        sinks: int = 0,
        **changes: Any,
    ) -> Any:
        source = kit.build(tmp_path / "source", model_type, **changes)
        config = dfq_config(describe(read_json(source / "config.json")), QuantScheme.parse(scheme))
        config = replace(config, sink_tokens=sinks)
        return load_model(kit.pack(source, tmp_path / "packed", config), dtype)

    return build


@torch.inference_mode()
def run(model: Any, ids: Tensor, is_native: bool, steps: tuple[int, ...] = STEPS) -> tuple[Tensor, Any]:
    """Logits of consecutive calls, and the cache they leave."""
    logits = []
    cache = None
    unfit, model.dfq_native.unfit = model.dfq_native.unfit, None if is_native else "switched off"
    for begin, count in zip([sum(steps[:i]) for i in range(len(steps))], steps):
        out = model(ids[:, begin : begin + count], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        logits.append(out.logits.float())
    model.dfq_native.unfit = unfit
    return torch.cat(logits, dim=1), cache


def tokens(batch: int = 1, count: int = sum(STEPS), vocab: int = 256) -> Tensor:
    return torch.randint(0, vocab, (batch, count), generator=torch.Generator().manual_seed(5))


def different_codes(left_cache: Any, right_cache: Any) -> float:
    """Share of bytes that differ between two caches."""
    wrong = total = 0
    for left, right in zip(left_cache.layers, right_cache.layers):
        assert left.length == right.length
        for a, b in zip(left.packed, right.packed):
            for x, y in zip(a.parts, b.parts):
                wrong += int((x[: left.length] != y[: right.length]).sum())
                total += x[: left.length].numel()
    return wrong / total


CASES = [
    ("llama", "w4a8kv4"),
    ("llama", "w4a4kv4-wasym"),
    ("llama", "w4a16kv4"),
    ("llama", "w4a8kv8-g32-sym"),
    ("mistral", "w4a8kv4-kvsym"),
    ("qwen2", "w4a4kv3"),
    ("qwen3", "w4a8kv4"),
]


@pytest.mark.parametrize(("model_type", "scheme"), CASES)
def test_the_same_logits_and_codes(make: Make, model_type: str, scheme: str) -> None:
    model = make(model_type, scheme)
    expected, cache = run(model, tokens(), False)
    native_logits, own = run(model, tokens(), True)
    assert model.dfq_native.report()["steps"] == len(STEPS)
    # a sum in another order may move a value over a rounding edge; anything else would move them all
    assert float((native_logits - expected).abs().mean()) < 1e-3 * float(expected.abs().mean())
    assert different_codes(own, cache) < 1e-3


@pytest.mark.parametrize("sinks", [1, 4, 40])
@pytest.mark.parametrize("steps", [STEPS, (1, 1, 1, 1, 5, 1), (3, 2, 7), (60, 1)])
@pytest.mark.parametrize("batch", [1, 5])
def test_sinks_among_the_new_positions(make: Make, sinks: int, steps: tuple[int, ...], batch: int) -> None:
    """They run first, with 16-bit activations, and stay exact in the cache."""
    model = make("llama", "w4a4kv4", sinks=sinks)
    ids = tokens(batch, sum(steps))
    expected, cache = run(model, ids, False, steps)
    native_logits, own = run(model, ids, True, steps)
    assert model.dfq_native.report()["steps"] == len(steps)
    assert not [reason for reason in model.dfq_native.report()["fallbacks"] if reason != "switched off"]
    # 4-bit codes: one that moved over an edge moves the logits by as much as its step
    assert float((native_logits - expected).abs().mean()) < 1e-2 * float(expected.abs().mean())
    assert different_codes(own, cache) < 5e-3
    kept = min(sinks, sum(steps))
    for left, right in zip(own.layers, cache.layers):
        for exact, other in zip(left.sink_states.tensors, right.sink_states.tensors):
            torch.testing.assert_close(exact[:kept], other[:kept], rtol=2e-2, atol=1e-3)


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("llama", {"sinks": 3}),
        ("mistral", {"sliding_window": 50}),
        ("qwen2", {"scheme": "w4a4kv3"}),
        ("mistral", {"sliding_window": 50, "sinks": 3, "scheme": "w4a16kv8", "dtype": torch.bfloat16}),
    ],
)
def test_long_prompts(make: Make, model_type: str, changes: dict[str, Any]) -> None:
    """More rows than the kernel for few rows takes, alone and behind a cache. With AVX-512, that of bfloat16 rounds
    where PyTorch's does not: coarse codes would make more of it."""
    model = make(model_type, max_position_embeddings=512, **changes)
    steps = (90, 1, 75)
    ids = tokens(2, sum(steps))
    expected, cache = run(model, ids, False, steps)
    native_logits, own = run(model, ids, True, steps)
    assert model.dfq_native.report()["steps"] == len(steps)
    assert float((native_logits - expected).abs().mean()) < 1e-2 * float(expected.abs().mean())
    if "dtype" not in changes:
        assert different_codes(own, cache) < 5e-3


def test_a_prompt_in_pieces_has_the_same_bits(make: Make) -> None:
    """Whatever the pieces and the number of threads, whose slabs of lines differ."""
    model = make(sinks=2, dtype=torch.bfloat16, max_position_embeddings=512)
    ids, before = tokens(count=300), torch.get_num_threads()
    results = []
    try:
        for threads, steps in ((1, (300,)), (3, (300,)), (2, (170, 130)), (16, (300,))):
            torch.set_num_threads(threads)
            results.append(run(model, ids, True, steps)[0])
    finally:
        torch.set_num_threads(before)
    for logits in results[1:]:
        assert torch.equal(logits, results[0])


@pytest.mark.parametrize("sinks", [0, 3])
@pytest.mark.parametrize("rows", [2, 3, 12, 40])
@torch.inference_mode()
def test_recorded_outputs_of_layers_are_those_of_the_modules(make: Make, sinks: int, rows: int) -> None:
    model = make("llama", "w4a16kv4", sinks=sinks)
    ids = tokens(2, rows)
    model.dfq_native.record((1,), 0)
    model(ids, use_cache=True)
    assert model.dfq_native.states is not None, why(model)
    (states,) = model.dfq_native.states
    expected = model(ids, use_cache=True, output_hidden_states=True).hidden_states[1]  # leaves hooks behind
    assert states.shape == expected.shape
    assert float((states - expected).abs().mean()) < 1e-3 * float(expected.abs().mean())


@torch.inference_mode()
def test_a_cache_without_room_for_sinks_is_refused(make: Make) -> None:
    model = make("llama", "w4a4kv4", sinks=2)
    _, cache = run(model, tokens(count=3), True, (3,))
    base, native_path = model.model, model.dfq_native
    hidden = base.embed_tokens(tokens(count=1))
    cos, sin = native_path._rope_angles(base, hidden, 0, 1)
    stores = [tuple(store.buffers() for store in layer.packed) for layer in cache.layers]
    without = native_path.decoder.caches(stores, None)
    with pytest.raises(RuntimeError, match="limits"):
        native_path.decoder.run(hidden, without, cos, sin, 1)
    with pytest.raises(RuntimeError, match="limits"):
        native_path.decoder.before(0, hidden, without, cos, sin, 1, rotate=True)


@torch.inference_mode()
def test_parts_of_a_block_agree_to_the_last_bit_or_but_for_it(make: Make) -> None:
    """RoPE and products bit for bit; norms and SiLU within the rounding of float32. Activations are not quantized here,
    so nothing makes a last bit larger."""
    from transformers import DynamicCache
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    model = make(scheme="w4a16kv8", hidden_size=192, num_attention_heads=6, num_key_value_heads=2)
    cache = DynamicCache()
    model(tokens(count=1), past_key_values=cache, use_cache=True)
    base, native_path, block = model.model, model.dfq_native, model.model.layers[0]
    decoder, rows = native_path.decoder, 24
    hidden = torch.randn(1, rows, 192) * 3
    normed = hidden.clone()
    decoder.finish(normed)
    torch.testing.assert_close(normed, base.norm(hidden), rtol=5e-7, atol=1e-7)

    cos, sin = native_path._rope_angles(base, hidden, 1, rows)
    table = native_path._caches(decoder, cache.layers, rows + 1, 1, hidden)
    query = decoder.before(0, hidden.clone(), table, cos, sin, 1, rotate=False)  # [1, rows, heads, D]
    positions = torch.arange(1, rows + 1)[None]
    projected = block.self_attn.q_proj(normed).view(1, rows, 6, 32).transpose(1, 2)
    turned, _ = apply_rotary_pos_emb(projected, projected, *base.rotary_emb(hidden, positions))
    assert torch.equal(query.transpose(1, 2), turned)

    mixed, out = torch.randn(1, rows, 6, 32), hidden.clone()
    decoder.after(0, out, mixed)
    between = hidden + block.self_attn.o_proj(mixed.view(1, rows, 192))
    expected = between + block.mlp(block.post_attention_layernorm(between))
    assert float((out - expected).abs().mean()) < 1e-6 * float(expected.abs().mean())
    assert float((out - expected).abs().max()) < 1e-5 * float(
        expected.abs().max()
    )  # inputs of products are rounded, too


@pytest.mark.parametrize("scheme", ["w4a8kv4", "w4a16kv4"])
def test_half_precision_models(make: Make, scheme: str) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        model = make(scheme=scheme, dtype=dtype)
        expected, _ = run(model, tokens(), False)
        native_logits, _ = run(model, tokens(), True)
        assert float((native_logits - expected).abs().mean()) < 1e-3 * float(expected.abs().mean())


def test_a_batch(make: Make) -> None:
    model = make()
    steps = (6, 1, 4, 1)
    expected, cache = run(model, tokens(3), False, steps)
    native_logits, own = run(model, tokens(3), True, steps)
    assert model.dfq_native.report()["steps"] == len(steps)
    assert float((native_logits - expected).abs().max()) < 1e-2 * float(expected.abs().max())
    assert different_codes(own, cache) < 1e-3


def test_instruction_sets_and_threads_agree(make: Make) -> None:
    model = make()
    before = native.isa()
    results = []
    try:
        for isa in native.available_isas():
            native.set_isa(isa)
            for threads in (1, 3):
                torch.set_num_threads(threads)
                results.append(run(model, tokens(), True, (3, 1, 1, 5, 1))[0])
    finally:
        native.set_isa(before)
    for logits in results[1:]:
        assert float((logits - results[0]).abs().mean()) < 1e-3 * float(results[0].abs().mean())
    assert torch.equal(results[-1], results[-2])  # the same instruction set, other threads


def test_generation_uses_it(make: Make) -> None:
    model = make()
    ids = tokens(count=12)
    options: dict[str, Any] = {"max_new_tokens": 20, "do_sample": False, "use_cache": True}
    generated = model.generate(ids, **options)
    assert model.dfq_native.report()["steps"] >= 19
    assert not model.dfq_native.report()["fallbacks"]
    model.dfq_native.unfit = "switched off"
    assert torch.equal(generated, model.generate(ids, **options))


def test_a_cropped_cache_goes_on(make: Make) -> None:
    model = make()
    ids = tokens(count=12)
    straight, _ = run(model, ids, True, (8, 1, 1, 2))
    with torch.inference_mode():
        out = model(ids[:, :8], use_cache=True)
        cache = model(tokens(count=5), past_key_values=out.past_key_values, use_cache=True).past_key_values
        cache.crop(-5)
        out = model(ids[:, 8:9], past_key_values=cache, use_cache=True)
    assert torch.equal(out.logits[0, 0].float(), straight[0, 8])


def why(model: Any) -> str:
    return " ".join(model.dfq_native.report()["fallbacks"])


def test_what_it_does_not_serve_is_computed_by_the_modules(make: Make) -> None:
    model = make()
    ids = tokens(2, 8)
    with torch.inference_mode():
        model(ids, use_cache=False)
        assert "scores a text" in why(model)
        padded = torch.ones(2, 8, dtype=torch.int64)
        padded[0, :3] = 0
        model(ids, attention_mask=padded, use_cache=True)
        assert "mask" in why(model)
        assert len(model(ids, use_cache=True, output_hidden_states=True).hidden_states) == 3
        assert "output_hidden_states" in why(model)
    assert model.dfq_native.report()["steps"] == 0


def test_hooks_see_every_call(make: Make) -> None:
    model = make()
    ids = tokens(count=4)
    with torch.inference_mode():
        model(ids, use_cache=True)
        calls: list[int] = []
        handle = model.model.layers[1].mlp.register_forward_hook(lambda *_: calls.append(1))
        model(ids, use_cache=True)
        assert calls == [1]
        assert "hooks" in why(model)
        handle.remove()
        model(ids, use_cache=True)
    assert calls == [1]
    assert model.dfq_native.report()["steps"] == 2


def test_unfit_models_say_why(make: Make, tmp_path: Path) -> None:
    model = make(scheme="w4a8kv16")
    with torch.inference_mode():
        model(tokens(count=4), use_cache=True)
    assert "16 bits" in model.dfq_native.report()["unfit"]


def test_copies_and_moved_models_build_their_own(make: Make) -> None:
    model = make()
    ids = tokens(count=10)
    expected, _ = run(model, ids, True, (5, 1, 4))
    twin = copy.deepcopy(model)
    with torch.no_grad():
        model.model.norm.weight.zero_()
    native_logits, _ = run(twin, ids, True, (5, 1, 4))
    assert twin.dfq_native is not model.dfq_native
    assert twin.model.dfq_native is twin.dfq_native
    assert twin.dfq_native.report()["steps"] == 3
    assert torch.equal(native_logits, expected)
    moved, _ = run(twin.to(torch.bfloat16), ids, True, (5, 1, 4))
    assert twin.dfq_native.report()["steps"] == 6
    assert 0 < float((moved - expected).abs().mean()) < 0.2 * float(expected.abs().mean())
