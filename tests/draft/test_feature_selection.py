"""Attention entropy equals that of eager attention, without its matrices and without changing the outputs."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dfrot.draft.attention_entropy import row_entropy
from dfrot.draft.feature_selection import FeatureChooser, FeatureSelection
from dfrot.draft.training.target_features import text_features
from dfrot.errors import InputError
from dfrot.generation.target import Target

Get = Callable[..., Target]
IDS = torch.randint(1, 96, (2, 33), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def eager(target: Target) -> list[Tensor]:
    """Row entropies [B, S] per layer from the attention matrices."""
    model, used = target.model, target.model.config._attn_implementation
    model.set_attn_implementation("eager")
    weights = model(IDS, output_attentions=True, use_cache=False).attentions
    model.set_attn_implementation(used)
    return [-(w * w.clamp(min=1e-30).log()).sum(-1).mean(1) for w in weights]


class Recording(FeatureChooser):
    """Keeps every entropy and output that passes."""

    def __init__(self, kind: str, rows: Tensor, n_layers: int) -> None:
        super().__init__(FeatureSelection.parse(kind), rows, n_layers)
        self.entropies: list[Tensor] = []
        self.shares: list[Tensor] = []
        self.outputs: list[Tensor] = []

    def measured(self, entropy: Tensor, visible: Tensor) -> None:
        self.entropies.append(entropy)
        self.shares.append(entropy / visible.clamp(min=2).log())
        super().measured(entropy, visible)

    def offer(self, layer: int, output: Tensor) -> None:
        self.outputs.append(output)
        super().offer(layer, output)


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen3", "mixed", "gemma2", "gemma3"])
def test_entropies_are_those_of_eager_attention(targets: Get, name: str) -> None:
    target = targets(name)
    before = text_features(target, IDS).last
    chooser = Recording("sample", torch.ones_like(IDS, dtype=torch.bool), 4)
    assert torch.equal(text_features(target, IDS, chooser).last, before), "observing changed the output"
    assert len(chooser.entropies) == 3, "the last layer's output is no candidate"
    for ours, theirs in zip(chooser.entropies, eager(target)):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_entropy_of_a_quantized_cache(targets: Get) -> None:
    chooser = Recording("sample", torch.ones_like(IDS, dtype=torch.bool), 4)
    text_features(targets("llama-kv4"), IDS, chooser)
    for ours, theirs in zip(chooser.entropies, eager(targets("llama"))):
        assert 1e-4 < float((ours - theirs).abs().max()) < 1.5


@pytest.mark.parametrize("kind", ["sample", "token"])
def test_the_layer_with_the_least_entropy_is_chosen(targets: Get, kind: str) -> None:
    rows = torch.zeros_like(IDS, dtype=torch.bool)
    rows[0, 5:20] = rows[1, 9:] = True
    chooser = Recording(kind, rows, 4)
    features = text_features(targets("llama"), IDS, chooser)
    shares = torch.stack(chooser.shares)
    if kind == "sample":
        score = torch.stack([share.where(rows, 0.0).sum(-1) / rows.sum(-1) for share in shares])
        best = score.argmin(0)
        expected = torch.stack([chooser.outputs[int(best[row])][row] for row in range(2)])
        assert torch.equal(features.mid, expected)
        assert features.layer.flatten().tolist() == (best + 1).tolist()
    else:
        best = shares.argmin(0)
        for row, position in rows.nonzero().tolist():
            assert torch.equal(features.mid[row, position], chooser.outputs[int(best[row, position])][row, position])


def test_static_and_none(targets: Get) -> None:
    rows = torch.ones_like(IDS, dtype=torch.bool)
    chooser = Recording("static:0.75", rows, 4)
    assert torch.equal(text_features(targets("llama"), IDS, chooser).mid, chooser.outputs[2])
    assert not chooser.entropies
    assert text_features(targets("llama"), IDS, FeatureChooser(FeatureSelection.parse("none"), rows, 4)).mid is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_masks_and_half_precision(dtype: torch.dtype) -> None:
    q, k = torch.randn(2, 4, 9, 16).to(dtype), 8 * torch.randn(2, 2, 12, 16).to(dtype)
    visible = torch.rand(2, 1, 9, 12) > 0.4
    visible[0, 0, 3] = False  # a row of padding
    entropy, count = row_entropy(q, k, visible, 0.25, False, 4)
    additive = torch.where(visible, 0.0, torch.finfo(torch.float32).min)
    assert torch.allclose(row_entropy(q, k, additive, 0.25, False, 5)[0], entropy)
    weights = (q.float() @ k.float().repeat_interleave(2, 1).mT * 0.25).masked_fill(~visible, -torch.inf).softmax(-1)
    exact = -(weights * weights.clamp(min=1e-30).log()).sum(-1).mean(1)
    exact[0, 3] = 0
    assert torch.allclose(entropy, exact, atol=1e-4)
    assert torch.equal(count, visible[:, 0].sum(-1).float())
    assert torch.isfinite(entropy).all()


def test_no_matrix_of_all_heads_and_positions_exists(targets: Get, kit: SimpleNamespace) -> None:
    """Every tensor that is created is smaller than [heads, S, S]."""
    largest = 0

    class LargestTensor(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for tensor in [out] if isinstance(out, Tensor) else []:
                largest = max(largest, tensor.numel())
            return out

    heads, length = 4, 512
    q, k = torch.randn(1, heads, length, 16), torch.randn(1, 2, length, 16)
    with LargestTensor():
        row_entropy(q, k, None, 0.25, True)
    assert largest <= heads * 64 * length
    assert largest < heads * length * length / 4


class PeakMemory(TorchDispatchMode):
    """The most bytes that tensors created inside held at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return
        self.known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def test_extraction_at_4k_takes_little_more_than_a_forward(kit: SimpleNamespace) -> None:
    """Weights and activations together: at most a fifth above the target's own pass."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "head_dim": 64, "vocab_size": 512}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096}
    config = AutoConfig.for_model("llama", **sizes, **heads)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    target, ids = Target(model.requires_grad_(False).eval()), torch.randint(0, 512, (1, 4096))
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    peaks = []
    for kind in (None, "sample"):
        chooser = kind and FeatureChooser(
            FeatureSelection.parse(kind), torch.ones_like(ids, dtype=torch.bool), target.n_layers
        )
        with PeakMemory() as memory:
            features = text_features(target, ids, chooser or None)
        peaks.append(weights + memory.peak)
        assert (features.mid is None) == (kind is None)
    assert peaks[0] > weights + 4096 * 256 * 2, "something was counted"
    assert peaks[1] <= 1.2 * peaks[0]


@pytest.mark.parametrize("text", ["static", "static:0", "static:1.5", "static:x", "sample:3", "all"])
def test_unknown_selections_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="`select`"):
        FeatureSelection.parse(text)
