"""Keys minus a constant: attention does not notice, and all ways to the cache subtract the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dfrot.arch import describe
from dfrot.bench.models.random_model import dfq_config
from dfrot.compat import attention as table
from dfrot.errors import InputError
from dfrot.files import read_json, write_json
from dfrot.quant.activations import fake_quantize_kv
from dfrot.quant.key_shift import refuses_key_shift
from dfrot.quant.scheme import QuantScheme
from dfrot.quant.sinks import Sinks
from dfrot.rotation.hadamard import hadamard_matrix, hadamard_plan
from dfrot.runtime.install import base_model_of, use_capped_attention
from dfrot.runtime.kv_cache import DfqCacheLayer
from dfrot.runtime.load import load_model
from dfrot.runtime.packed_states import KVSpec
from dfrot_kernels import native
from dfrot_kernels.whole_blocks.decoder import LINES

TYPES = (
    *("llama", "mistral", "qwen2", "phi3", "granite", "qwen3", "olmo2", "gemma2", "gemma3_text"),
    *("mixtral", "olmoe", "qwen3_moe"),
)


@pytest.mark.parametrize("model_type", TYPES)
def test_attention_does_not_notice_unless_it_is_refused(
    model_type: str, kit: SimpleNamespace, tmp_path: Path, ids: Tensor
) -> None:
    """In float64, with a shift as large as a key; batches with padding and sliding windows included. PyTorch multiplies
    experts in float32 at most."""
    folder = kit.build(tmp_path / "source", model_type)
    arch = describe(read_json(folder / "config.json"))
    from transformers import AutoModelForCausalLM

    dtype, limit = (torch.float64, 1e-5) if arch.spec.experts is None else (torch.float32, 1e-3)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    use_capped_attention(base_model_of(model, arch), arch)
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    shift = torch.randn(1, arch.n_kv_heads, 1, arch.head_dim, dtype=dtype)

    def wrap(attention: table.AttentionFunction) -> table.AttentionFunction:
        def shifted(module: nn.Module, query: Tensor, key: Tensor, *rest: Any, **options: Any) -> Any:
            return attention(module, query, key - shift, *rest, **options)

        return shifted

    with torch.no_grad():
        expected = model(ids, attention_mask=mask).logits
        with table.wrapped(table.implementation(model.config), wrap):
            logits = model(ids, attention_mask=mask).logits
    seen = mask.bool()
    error = float((logits - expected)[seen].abs().max() / expected[seen].abs().max())
    assert (error < limit) == (refuses_key_shift(arch) is None), error  # norms compute in float32
    assert (model_type == "gemma2") == (refuses_key_shift(arch) is not None)


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("starts", [None, [0, 2, 1]])
def test_the_cache_stores_shifted_keys_sinks_included(bits: int, starts: list[int] | None) -> None:
    batch, heads, length, width, count = 3, 2, 11, 32, 2
    generator = torch.Generator().manual_seed(bits)
    keys, values = (torch.randn(batch, heads, length, width, generator=generator) for _ in range(2))
    shift = 4 * torch.randn(heads, width, generator=generator)
    sinks = Sinks(count)
    sinks.begin(batch, length, 0, None if starts is None else torch.tensor(starts))
    plan = hadamard_plan(width)
    layer = DfqCacheLayer(KVSpec(bits, False, 1.0, plan), sinks, shift=shift)
    parts = [layer.update(keys[:, :, i : i + 1], values[:, :, i : i + 1]) for i in range(length)]
    at_once = DfqCacheLayer(KVSpec(bits, False, 1.0, plan), sinks, shift=shift).update(keys, values)
    assert torch.equal(parts[-1][0], at_once[0])
    shifted = torch.ops.dfq.hadamard(keys, plan.base(), plan.block) - shift[:, None]
    expected = fake_quantize_kv(shifted, bits, False)
    for row, start in enumerate(starts or [0] * batch):
        expected[row, :, start : start + count] = shifted[row, :, start : start + count]
    assert torch.equal(at_once[0], expected)
    assert float((keys @ hadamard_matrix(plan).float() - shift[:, None] - shifted).abs().max()) < 1e-4


def shifted_model(kit: SimpleNamespace, tmp_path: Path, model_type: str, scheme: str, **changes: Any) -> Path:
    source = kit.build(tmp_path / "source", model_type)
    arch = describe(read_json(source / "config.json"))
    config = replace(dfq_config(arch, QuantScheme.parse(scheme)), key_shift="mean", **changes)
    folder: Path = kit.pack(source, tmp_path / "packed", config)
    return folder


@torch.inference_mode()
def steps(model: Any, ids: Tensor, is_native: bool) -> tuple[Tensor, Any]:
    """Logits of a prompt, single tokens and several, and the cache."""
    unfit, model.dfq_native.unfit = model.dfq_native.unfit, None if is_native else "switched off"
    logits, cache = [], None
    for part in ids.split([9, 1, 1, 3, 10], 1):
        out = model(part, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        logits.append(out.logits.float())
    model.dfq_native.unfit = unfit
    return torch.cat(logits, 1), cache


@pytest.mark.skipif(not native.active(), reason="needs the native library")
@pytest.mark.parametrize(
    ("model_type", "scheme", "sinks"),
    [("llama", "w4a8kv4", 0), ("qwen2", "w4a4kv3", 2), ("mistral", "w4a16kv4-kvsym", 0), ("qwen3", "w4a8kv8", 3)],
)
def test_the_native_decoder_writes_the_same_codes(
    model_type: str, scheme: str, sinks: int, kit: SimpleNamespace, tmp_path: Path, ids: Tensor
) -> None:
    model = load_model(shifted_model(kit, tmp_path, model_type, scheme, sink_tokens=sinks))
    expected, cache = steps(model, ids, False)
    logits, own = steps(model, ids, True)
    assert model.dfq_native.report()["steps"] == 5
    assert float((logits - expected).abs().mean()) < 1e-3 * float(expected.abs().mean())
    differing = total = 0
    for left, right in zip(cache.layers, own.layers):
        for store, other in zip(left.packed, right.packed):
            for a, b in zip(store.parts, other.parts):
                differing += int((a[: left.length] != b[: left.length]).sum())
                total += a[: left.length].numel()
    assert differing < 1e-3 * total  # a norm's sum in another order may move a value over an edge
    model.model.layers[1].self_attn.key_shift.zero_()
    assert not torch.allclose(steps(model, ids, False)[0], expected, rtol=1e-3)


@pytest.mark.skipif(not native.active(), reason="needs the native library")
@torch.inference_mode()
def test_a_tree_of_one_path_is_a_chain(kit: SimpleNamespace, tmp_path: Path, ids: Tensor) -> None:
    from transformers import DynamicCache

    model = load_model(shifted_model(kit, tmp_path, "llama", "w4a8kv4"))
    prompt, tokens = ids[:1, :7], ids[0, 7 : 7 + LINES].tolist()
    caches = [DynamicCache(), DynamicCache()]
    for cache in caches:
        model(prompt, past_key_values=cache, use_cache=True)
    tree = model.dfq_native.serve_tree(model.model, tokens, list(range(-1, LINES - 1)), caches[0])
    for position, token in enumerate(tokens):
        chain = model.model(torch.tensor([[token]]), past_key_values=caches[1], use_cache=True).last_hidden_state
        assert torch.equal(tree[position], chain[0, 0])
    for left, right in zip(*(cache.layers for cache in caches)):
        for a, b in zip(left.packed[0].parts, right.packed[0].parts):
            assert torch.equal(a[: left.length], b[: left.length])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_simulated_and_saved_again(
    dtype: torch.dtype, kit: SimpleNamespace, tmp_path: Path, ids: Tensor
) -> None:
    folder = shifted_model(kit, tmp_path, "llama", "w4a4kv4")
    model = load_model(folder, dtype)
    shift = model.model.layers[0].self_attn.key_shift
    assert shift.dtype == torch.float32
    assert shift.std() > 0.5
    if dtype == torch.float32:
        assert torch.equal(model(ids).logits, load_model(folder, dtype, fake=True)(ids).logits)
    model.save_pretrained(tmp_path / "again")
    assert torch.equal(load_model(tmp_path / "again", dtype)(ids).logits, model(ids).logits)


def test_a_cache_of_another_model_is_refused(kit: SimpleNamespace, tmp_path: Path, ids: Tensor) -> None:
    from dfrot.errors import UnsupportedError

    folder = shifted_model(kit, tmp_path, "llama", "w4a8kv4")
    cache = load_model(folder)(ids, use_cache=True).past_key_values
    config = read_json(folder / "config.json")
    del config["quantization_config"]["key_shift"]
    without = kit.pack(tmp_path / "source", tmp_path / "without", replace(_config(config), key_shift="none"))
    with pytest.raises(UnsupportedError, match="belongs to another model"):
        load_model(without)(ids[:, :1], past_key_values=cache)


def _config(config: dict[str, Any]) -> Any:
    from dfrot.quant.config import DfqConfig

    return DfqConfig.of(config)


def _edit(folder: Path, change: dict[str, Any]) -> None:
    config = read_json(folder / "config.json")
    config["quantization_config"].update(change)
    write_json(folder / "config.json", config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key_shift": "median"}, "key_shift 'median' is none of mean, none"),
        ({"key_shift": ["mean"]}, "is none of mean, none"),
        ({"key_shift": "none"}, "key_shift does not belong to this model"),
        ({"scheme": {**QuantScheme.parse("w4a8").to_dict()}}, "key_shift: keys are kept in 16 bits"),
    ],
)
def test_entries_that_do_not_fit(change: dict[str, Any], message: str, kit: SimpleNamespace, tmp_path: Path) -> None:
    folder = shifted_model(kit, tmp_path, "llama", "w4a8kv4")
    _edit(folder, change)
    with pytest.raises(InputError, match=message):
        load_model(folder)


@pytest.mark.parametrize("fake", [False, True])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "key_shift is missing"),
        (torch.zeros(2, 8), "shape"),
        (torch.full((2, 16), torch.nan), "NaN"),
        (torch.zeros(2, 16, dtype=torch.int64), "dtype"),
    ],
)
def test_tensors_that_do_not_fit(
    value: Tensor | None, message: str, fake: bool, kit: SimpleNamespace, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    folder = shifted_model(kit, tmp_path, "llama", "w4a8kv4", fake=fake)
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    name = "model.layers.1.self_attn.key_shift"
    del tensors[name]
    save_file({**tensors, **({} if value is None else {name: value})}, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=message):
        load_model(folder)


def test_capped_scores_refuse_the_entry(kit: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="capped before the softmax"):
        shifted_model(kit, tmp_path, "gemma2", "w4a8kv4")
