"""Packed checkpoints of every architecture: they load, agree with their simulated twin and generate."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from dfrot.arch import describe
from dfrot.errors import InputError
from dfrot.quant.config import DfqConfig
from dfrot.quant.modules.dense_linear import DenseLinear
from dfrot.quant.modules.linear import QuantLinear
from dfrot.quant.scheme import QuantScheme
from dfrot.rotation.hadamard import hadamard_plan
from dfrot.rotation.online import OnlineRotations
from dfrot.runtime.load import load_model

KINDS = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "granite",
    "phi3",
    "mixtral",
    "qwen3_moe",
    "olmoe",
    "olmo2",
    "gemma2",
    "gemma3_text",
)


def online(model_type: str, kit: SimpleNamespace) -> OnlineRotations:
    arch = describe({"model_type": model_type, **kit.configs[model_type]})
    return OnlineRotations(r3=hadamard_plan(arch.head_dim), r4=hadamard_plan(arch.intermediate))


@torch.no_grad()
def logits(model: object, ids: Tensor, **options: object) -> Tensor:
    return model(ids, **options).logits.float()  # type: ignore[operator]


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("model_type", KINDS)
def test_packed_equals_its_simulated_twin(model_type: str, kit: SimpleNamespace, tmp_path: Path, ids: Tensor) -> None:
    source = kit.build(tmp_path / "source", model_type)
    config = DfqConfig(QuantScheme.parse("w4a4kv4"), online(model_type, kit))
    packed = load_model(kit.pack(source, tmp_path / "packed", config))
    declared = list(describe({"model_type": model_type, **kit.configs[model_type]}).linears())
    assert sum(isinstance(m, QuantLinear) for m in packed.modules()) == len(declared)
    real = logits(packed, ids)
    twin = logits(load_model(tmp_path / "packed", fake=True), ids)
    fake_folder = DfqConfig(config.scheme, config.online, fake=True)
    written = logits(load_model(kit.pack(source, tmp_path / "fake", fake_folder)), ids)
    assert torch.equal(real, twin)
    assert torch.equal(twin, written)
    original = logits(load_model(source), ids)
    assert 0.02 < relative(real, original) < 1.2, "4 bits must cost something, and not everything"


@pytest.mark.parametrize("model_type", KINDS)
@pytest.mark.parametrize("name", ["w4a4kv4", "w4a16"])
def test_generation_repeats_the_full_forward(model_type: str, name: str, kit: SimpleNamespace, tmp_path: Path) -> None:
    source = kit.build(tmp_path / "source", model_type)
    config = DfqConfig(QuantScheme.parse(name), online(model_type, kit))
    model = load_model(kit.pack(source, tmp_path / "packed", config))
    prompt = torch.arange(3, 23)[None]  # longer than mistral's window of 16
    out = model.generate(prompt, max_new_tokens=6, do_sample=False)
    assert out.shape == (1, 26)
    full = logits(model, out, use_cache=False)[:, 19:-1].argmax(-1)
    assert torch.equal(full, out[:, 20:])


def test_rotated_sixteen_bit_folder_equals_the_original(kit: SimpleNamespace, tmp_path: Path, ids: Tensor) -> None:
    source = kit.build(tmp_path / "source")
    config = DfqConfig(online=online("llama", kit))
    model = load_model(kit.pack(source, tmp_path / "rotated", config))
    assert sum(isinstance(m, DenseLinear) for m in model.modules()) == 2
    assert relative(logits(model, ids), logits(load_model(source), ids)) < 1e-5
    plain = DfqConfig(QuantScheme(16, 16, 8), OnlineRotations())
    rotated = DfqConfig(QuantScheme(16, 16, 8), online("llama", kit))
    for config in (plain, rotated):  # R3 cancels between queries and keys, up to the 8-bit keys' error
        near = load_model(kit.pack(source, tmp_path / str(bool(config.online)), config))
        assert relative(logits(near, ids), logits(load_model(source), ids)) < 0.03


@pytest.mark.parametrize(
    "name", ["w3a3kv3", "w4a8kv8", "w4a4-g16", "w4a4kv4-wasym-sym", "w8a8kv2", "w16a4kv4", "w5a16"]
)
def test_every_scheme_runs_like_its_twin(name: str, kit: SimpleNamespace, tmp_path: Path, ids: Tensor) -> None:
    source = kit.build(tmp_path / "source")
    config = DfqConfig(QuantScheme.parse(name), online("llama", kit), keep=("model.layers.0.mlp.up_proj",))
    real = logits(load_model(kit.pack(source, tmp_path / "packed", config)), ids)
    twin = logits(load_model(tmp_path / "packed", fake=True), ids)
    if "a16" in name or "g16" in name:  # sums in another order, and a code that flips here and there
        assert relative(real, twin) < 2e-2
    else:
        assert torch.equal(real, twin)
    assert torch.isfinite(real).all()


def test_batch_of_different_lengths_and_beams(kit: SimpleNamespace, tmp_path: Path) -> None:
    source = kit.build(tmp_path / "source")
    config = DfqConfig(QuantScheme.parse("w4a16kv4"), online("llama", kit), sink_tokens=2)
    model = load_model(kit.pack(source, tmp_path / "packed", config))
    short, long = torch.arange(5, 12), torch.arange(40, 52)
    padded = torch.stack([torch.cat([torch.zeros(5, dtype=torch.long), short]), long])
    mask = torch.ones_like(padded)
    mask[0, :5] = 0
    together = model.generate(padded, attention_mask=mask, max_new_tokens=5, do_sample=False, pad_token_id=0)
    alone = model.generate(short[None], max_new_tokens=5, do_sample=False)
    assert torch.equal(together[0, 12:], alone[0, 7:])
    beams = model.generate(padded, attention_mask=mask, max_new_tokens=5, num_beams=3, do_sample=False, pad_token_id=0)
    assert beams.shape[0] == 2

    def score(tokens: Tensor) -> float:
        steps = logits(model, tokens[None], use_cache=False)[0].log_softmax(-1)
        return float(steps[11:-1].gather(-1, tokens[12:, None]).sum())

    assert score(beams[1]) >= score(together[1]) - 1e-3, "beam search never ends below greedy"


def test_drafted_tokens_are_cropped_away(kit: SimpleNamespace, tmp_path: Path) -> None:
    source = kit.build(tmp_path / "source")
    config = DfqConfig(QuantScheme.parse("w4a4kv4"), online("llama", kit), sink_tokens=1)
    model = load_model(kit.pack(source, tmp_path / "packed", config))
    prompt = torch.arange(4, 12).repeat(3)[None]  # repeats, so that prompt lookup drafts something
    greedy = model.generate(prompt, max_new_tokens=8, do_sample=False)
    drafted = model.generate(prompt, max_new_tokens=8, do_sample=False, prompt_lookup_num_tokens=3)
    assert torch.equal(greedy, drafted)


def test_simulated_folder_keeps_exact_weights_in_a_bfloat16_model(
    kit: SimpleNamespace, tmp_path: Path, ids: Tensor
) -> None:
    source = kit.build(tmp_path / "source", dtype=torch.bfloat16)
    scheme = QuantScheme.parse("w4a16")
    packed = load_model(kit.pack(source, tmp_path / "packed", DfqConfig(scheme)))
    fake = load_model(kit.pack(source, tmp_path / "fake", DfqConfig(scheme, fake=True)))
    for (name, a), (_, b) in zip(packed.named_modules(), fake.named_modules()):
        if isinstance(a, QuantLinear):
            assert torch.equal(a.stored_weight().dequantize(), b.weight), name
    assert relative(logits(packed, ids), logits(fake, ids)) < 1e-2


def test_quantized_head_must_be_untied(kit: SimpleNamespace, tmp_path: Path) -> None:
    source = kit.build(tmp_path / "source", tie_word_embeddings=True)
    config = DfqConfig(QuantScheme.parse("w4a4"), keep=())
    with pytest.raises(InputError, match="untie"):
        kit.pack(source, tmp_path / "packed", config)
    free = kit.build(tmp_path / "free")
    model = load_model(kit.pack(free, tmp_path / "head", config))
    assert isinstance(model.lm_head, QuantLinear)
    assert model.generate(torch.arange(4)[None], max_new_tokens=3).shape == (1, 7)


def test_bfloat16_model_keeps_scales_and_codes(kit: SimpleNamespace, tmp_path: Path, ids: Tensor) -> None:
    source = kit.build(tmp_path / "source", dtype=torch.bfloat16)
    config = DfqConfig(QuantScheme.parse("w4a4kv4"), online("llama", kit))
    folder = kit.pack(source, tmp_path / "packed", config)
    for dtype in ("bfloat16", "float16", "float32"):
        model = load_model(folder, dtype)
        linear = next(m for m in model.modules() if isinstance(m, QuantLinear))
        assert linear.stored_weight().scale.dtype == torch.bfloat16
        assert model(ids).logits.dtype == getattr(torch, dtype)
    assert load_model(folder).dtype == torch.bfloat16


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3"])
def test_tied_head_stays_tied(model_type: str, kit: SimpleNamespace, tmp_path: Path, ids: Tensor) -> None:
    source = kit.build(tmp_path / "source", model_type, tie_word_embeddings=True)
    config = DfqConfig(QuantScheme.parse("w4a4kv4"), online(model_type, kit))
    folder = kit.pack(source, tmp_path / "packed", config)
    model = load_model(folder)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(logits(model, ids), logits(load_model(folder, fake=True), ids))
    assert model.generate(ids, max_new_tokens=3, do_sample=False).shape == (2, 27)


def test_sinks_change_the_first_positions_only_through_attention(
    kit: SimpleNamespace, tmp_path: Path, ids: Tensor
) -> None:
    source = kit.build(tmp_path / "source")
    scheme = QuantScheme.parse("w16a4kv4")
    exact = logits(load_model(source), ids)
    for sinks in (0, 3, 24):
        config = DfqConfig(scheme, online("llama", kit), sink_tokens=sinks)
        mixed = logits(load_model(kit.pack(source, tmp_path / f"sinks{sinks}", config)), ids)
        error = (mixed - exact).norm(dim=-1) / exact.norm(dim=-1)
        if sinks:
            assert float(error[:, :sinks].max()) < 1e-4
        if sinks < 24:
            assert float(error[:, sinks:].min()) > 1e-3


def test_saved_again_it_is_the_same_checkpoint(kit: SimpleNamespace, tmp_path: Path, ids: Tensor) -> None:
    source = kit.build(tmp_path / "source")
    config = DfqConfig(QuantScheme.parse("w4a4kv4"), online("llama", kit), a_clips={"lm_head": 0.9})
    model = load_model(kit.pack(source, tmp_path / "packed", config))
    model.save_pretrained(tmp_path / "again")
    again = load_model(tmp_path / "again")
    assert torch.equal(logits(again, ids), logits(model, ids))


@pytest.mark.parametrize("model_type", ["gemma2", "gemma3_text", "olmo2", "mixtral", "qwen3_moe"])
def test_rotated_folders_of_other_blocks_equal_the_original(
    model_type: str, kit: SimpleNamespace, tmp_path: Path, ids: Tensor
) -> None:
    """R3 behind q and k norms, scores with a cap, experts; keys and values in 8 bits, which cost next to nothing."""
    source = kit.build(tmp_path / "source", model_type)
    original = logits(load_model(source), ids)
    plain = load_model(kit.pack(source, tmp_path / "plain", DfqConfig(online=online(model_type, kit))))
    assert relative(logits(plain, ids), original) < 1e-5
    near = DfqConfig(QuantScheme(16, 16, 8), online(model_type, kit))
    assert relative(logits(load_model(kit.pack(source, tmp_path / "near", near)), ids), original) < 0.03


def test_capped_scores_in_a_padded_batch(kit: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = kit.build(tmp_path / "source", "gemma2")
    config = DfqConfig(QuantScheme.parse("w4a16kv4"), online("gemma2", kit), sink_tokens=2)
    model = load_model(kit.pack(source, tmp_path / "packed", config))
    short, long = torch.arange(5, 12), torch.arange(40, 60)
    padded = torch.stack([torch.cat([torch.zeros(13, dtype=torch.long), short]), long])
    mask = torch.ones_like(padded)
    mask[0, :13] = 0
    monkeypatch.setattr("dfrot.runtime.attention.MAX_SCORES", 300)  # rows in several blocks
    together = model.generate(padded, attention_mask=mask, max_new_tokens=5, do_sample=False, pad_token_id=0)
    alone = model.generate(short[None], max_new_tokens=5, do_sample=False)
    assert torch.equal(together[0, 20:], alone[0, 7:])
    assert not model.dfq_native.report()["steps"], "the native decoder knows no caps"
