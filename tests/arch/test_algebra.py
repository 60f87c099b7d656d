"""The rotated model is the original model: every described architecture, in float64, to rounding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dfrot.arch import ARCHS, BoundArch, describe, open_described
from dfrot.checkpoint import Checkpoint
from dfrot.checkpoint_writer import SafetensorsWriter
from dfrot.errors import InputError, MismatchError, UnsupportedError
from dfrot.rotation.fuse import Fuser, Rotations
from dfrot.rotation.hadamard import hadamard_plan, hadamard_transform, random_orthogonal, randomized_hadamard
from dfrot.rotation.online import HadamardSpec
from dfrot.rotation.transforms import Transforms, key_factor_heads, refuses_shift, rotary_width
from dfrot.runtime.block_runner import hf_config
from dfrot.runtime.experts import install_experts
from dfrot.runtime.softcap import softcap_of

TOKENS = torch.tensor([[1, 7, 3, 39, 0, 22, 5, 5, 31, 2]])
QKV = tuple(f"self_attn.{name}_proj" for name in "qkv")
ALL = (*QKV, "self_attn.o_proj", *(f"mlp.{name}_proj" for name in ("gate", "up", "down")))
SERVED = [name for name, spec in ARCHS.items() if spec.refuses("residual") is None]
REFUSED = [name for name in ARCHS if name not in SERVED]

GRANITE = {
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.125,
    "logits_scaling": 8.0,
}
GEMMA = {"sliding_window": 4, "query_pre_attn_scalar": 5, "final_logit_softcapping": 2.0, "attn_logit_softcapping": 1.5}
CASES: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    *((name, {}, QKV if name == "qwen2" else ()) for name in SERVED),
    *((name, {"tie_word_embeddings": True}, QKV if name == "qwen2" else ()) for name in SERVED),
    *((name, {}, ()) for name in REFUSED),
    ("gemma2", {"tie_word_embeddings": True, **GEMMA}, ()),
    ("gemma3_text", {"tie_word_embeddings": True, **GEMMA}, ()),
    ("llama", {"attention_bias": True, "mlp_bias": True}, ALL),
    ("qwen3", {"attention_bias": True}, ALL[:4]),
    ("granite", GRANITE, ()),
    ("phi3", {"num_key_value_heads": 4, "num_attention_heads": 8}, ()),
    ("granite", {**GRANITE, "tie_word_embeddings": True}, ()),
    ("qwen3_moe", {"norm_topk_prob": False, "num_experts_per_tok": 1, "moe_intermediate_size": 48}, ()),
    ("llama", {"intermediate_size": 96, "head_dim": 12, "num_key_value_heads": 1}, ()),
    ("mistral", {"intermediate_size": 172, "num_key_value_heads": 4}, ()),
    ("llama", {"intermediate_size": 92, "hidden_size": 30, "head_dim": 10, "num_attention_heads": 6}, ()),  # blocks
]


class ExactNorm(nn.Module):
    """transformers computes its norms in float32, which would hide everything below 1e-7."""

    def __init__(self, norm: Any, offset: float) -> None:
        super().__init__()
        self.weight, self.offset = norm.weight, offset
        self.eps = norm.eps if hasattr(norm, "eps") else norm.variance_epsilon

    def forward(self, x: Tensor) -> Tensor:
        return (self.weight + self.offset) * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)


class ExactRouter(nn.Module):
    """transformers takes the softmax of router scores in float32."""

    def __init__(self, router: Any, normalise: bool) -> None:
        super().__init__()
        self.weight, self.top_k, self.normalise = router.weight, router.top_k, normalise

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scores = x @ self.weight.T
        value, index = scores.softmax(-1).topk(self.top_k)
        return scores, value / value.sum(-1, keepdim=True) if self.normalise else value, index


class Online(nn.Module):
    def __init__(self, spec: HadamardSpec, linear: nn.Module) -> None:
        super().__init__()
        self.spec, self.linear = spec, linear

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(hadamard_transform(x, self.spec))  # type: ignore[no-any-return]


def logits(folder: Path, r4: HadamardSpec | None = None) -> Tensor:
    from transformers import AutoModelForCausalLM

    checkpoint = Checkpoint.open(folder)
    arch = describe(checkpoint.config)
    config = hf_config(checkpoint.config, torch.float64)
    config._experts_implementation = "eager"
    if softcap_of(config, arch, "attention") is not None:
        config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config).to(torch.float64).eval()
    state = {arch.module(name): checkpoint.read(name) for name in checkpoint.entries}
    if checkpoint.config["tie_word_embeddings"]:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    if r4 is not None:
        install_experts(model, arch, torch.float64)
    else:
        merge(state, arch)
    model.load_state_dict(state, strict=True, assign=True)
    downs = {arch.module(name) for _, linear, name in arch.linears() if linear.reads == "mlp"}
    for name, module in list(model.named_modules()):
        if type(module).__name__.endswith("RMSNorm"):
            model.set_submodule(name, ExactNorm(module, arch.spec.final_norm.offset))
        elif type(module).__name__.endswith("Router"):
            model.set_submodule(name, ExactRouter(module, getattr(config, "norm_topk_prob", True)))
        elif r4 and name in downs:
            model.set_submodule(name, Online(r4, module))
    with torch.no_grad():
        return model(TOKENS).logits  # type: ignore[no-any-return]


def merge(state: dict[str, Tensor], arch: BoundArch) -> None:
    """Experts as transformers keeps them in memory: [experts, rows, cols]."""
    mixture = arch.spec.experts
    for layer in range(arch.n_layers if mixture is not None else 0):
        assert mixture is not None
        container = arch.module(arch.full(layer, mixture.container))
        for name, parts in mixture.merged:
            names = [[f"{container}.{e}.{part}.weight" for part in parts] for e in range(arch.sizes["experts"])]
            state[arch.full(layer, name)] = torch.stack([torch.cat([state.pop(n) for n in expert]) for expert in names])


def rotated(folder: Path, out: Path, rotations: Rotations, transforms: Transforms | None = None) -> Path:
    import json

    checkpoint, arch = open_described(folder)
    out.mkdir()
    fuser = Fuser(checkpoint, arch, rotations, transforms)
    writer = SafetensorsWriter(out, fuser.plan())
    for name in fuser.jobs:
        fuser.write(name, writer)
    untied = {"tie_word_embeddings": False} if rotations.r1 is not None else {}
    shifted = transforms is not None and transforms.value_shift is not None
    biases = {arch.spec.attention_bias_key: True} if shifted else {}
    (out / "config.json").write_text(json.dumps(checkpoint.config | untied | biases))
    open_described(out)  # what comes out fits the description
    return out


def all_rotations(folder: Path, make_r1: Callable[[int, int], Tensor] = randomized_hadamard) -> Rotations:
    arch = describe(Checkpoint.open(folder).config)
    r2 = torch.stack([random_orthogonal(arch.head_dim, (1, layer)) for layer in range(arch.n_layers)])
    r1 = make_r1(arch.hidden, 1) if arch.spec.refuses("residual") is None else None
    return Rotations(r1, r2, hadamard_plan(arch.intermediate))


def error(logits_out: Tensor, expected: Tensor) -> float:
    return float((logits_out - expected).norm() / expected.norm())


@pytest.mark.parametrize("make_r1", [randomized_hadamard, random_orthogonal])
@pytest.mark.parametrize(("model_type", "config", "bias"), CASES)
def test_rotated_logits_are_the_originals(
    make: Any, tmp_path: Path, model_type: str, config: dict[str, Any], bias: tuple[str, ...], make_r1: Any
) -> None:
    folder = make(model_type, bias=bias, **config)
    rotations = all_rotations(folder, make_r1)
    out = rotated(folder, tmp_path / "out", rotations)
    assert error(logits(out, rotations.r4), logits(folder)) < 1e-10
    changed, original = Checkpoint.open(out), Checkpoint.open(folder)
    name = next(
        f"{name}.weight" for layer, linear, name in describe(original.config).linears() if linear.reads == "mlp"
    )
    assert not torch.allclose(changed.read(name), original.read(name))
    if rotations.r1 is not None:
        assert bool((changed.read("model.norm.weight") == 1).all())
        assert set(original.entries) | {"lm_head.weight"} == set(changed.entries)
    else:
        assert torch.equal(changed.read("model.norm.weight"), original.read("model.norm.weight"))
        assert set(original.entries) == set(changed.entries)


@pytest.mark.parametrize("left_out", ["r1", "r2", "r4"])
def test_each_rotation_stands_alone(make: Any, tmp_path: Path, left_out: str) -> None:
    folder = make("llama", bias=ALL, attention_bias=True, mlp_bias=True)
    everything = all_rotations(folder)
    parts = {name: getattr(everything, name) for name in ("r1", "r2", "r4") if name != left_out}
    out = rotated(folder, tmp_path / "out", Rotations(**parts))
    assert error(logits(out, parts.get("r4")), logits(folder)) < 1e-10


def test_an_online_rotation_left_out_is_a_different_model(make: Any, tmp_path: Path) -> None:
    folder = make("llama")
    out = rotated(folder, tmp_path / "out", all_rotations(folder))
    assert error(logits(out, None), logits(folder)) > 0.1


def test_no_rotation_is_a_copy(make: Any, tmp_path: Path) -> None:
    folder = make("qwen3", dtype=torch.bfloat16, tie_word_embeddings=True)
    out = rotated(folder, tmp_path / "out", Rotations())
    before, after = Checkpoint.open(folder), Checkpoint.open(out)
    assert set(before.entries) == set(after.entries)
    for name in before.entries:
        assert torch.equal(before.read(name), after.read(name)), name


def test_cast_once(make: Any, tmp_path: Path) -> None:
    """Every bf16 weight is the rounding of the float64 result, not of a rounded intermediate."""
    folder = make("llama", dtype=torch.bfloat16)
    exact = make("llama", dtype=torch.float64)
    original, wide = Checkpoint.open(folder), Checkpoint.open(exact)
    rotations = all_rotations(folder)
    out = Checkpoint.open(rotated(folder, tmp_path / "out", rotations))
    gain = original.read("model.layers.0.input_layernorm.weight").double()
    assert wide.shape("model.norm.weight") == original.shape("model.norm.weight")
    assert rotations.r1 is not None
    assert rotations.r2 is not None
    v = original.read("model.layers.0.self_attn.v_proj.weight").double() * gain @ rotations.r1
    v = torch.block_diag(*[rotations.r2[0]] * 2).T @ v
    assert torch.equal(out.read("model.layers.0.self_attn.v_proj.weight"), v.bfloat16())


@pytest.mark.parametrize("chunk", [1, 1000, 5000])
def test_chunks_do_not_change_the_result(make: Any, tmp_path: Path, chunk: int, monkeypatch: Any) -> None:
    folder = make("llama", bias=ALL, attention_bias=True, mlp_bias=True, dtype=torch.float32)
    rotations = all_rotations(folder)
    everything = Checkpoint.open(rotated(folder, tmp_path / "everything", rotations))
    monkeypatch.setattr("dfrot.rotation.fuse.CHUNK", chunk)
    parts = Checkpoint.open(rotated(folder, tmp_path / "parts", rotations))
    for name in everything.entries:
        assert torch.allclose(everything.read(name), parts.read(name), rtol=1e-6, atol=1e-7), name


@pytest.mark.parametrize("model_type", REFUSED)
def test_post_norm_architectures_are_refused_with_the_reason(make: Any, model_type: str) -> None:
    checkpoint, arch = open_described(make(model_type))
    with pytest.raises(UnsupportedError, match=f"{model_type}: R1 cannot be fused: .* learned gain between"):
        Fuser(checkpoint, arch, Rotations(r1=randomized_hadamard(24, 0)))


def test_the_refused_are_the_known_ones() -> None:
    assert set(REFUSED) == {"olmo2", "gemma2", "gemma3_text"}
    assert {"llama", "mistral", "qwen2", "qwen3", "granite", "phi3", "mixtral", "qwen3_moe", "olmoe"} <= set(SERVED)


def test_gains_that_are_stored_less_one(make: Any, tmp_path: Path) -> None:
    """Gemma's convention: the gain is 1 + w, so the fused norm stores 0."""
    folder = make("llama")
    checkpoint, arch = open_described(folder)
    spec = arch.spec
    shifted = replace(
        spec,
        norms=tuple(replace(norm, offset=1.0) for norm in spec.norms),
        final_norm=replace(spec.final_norm, offset=1.0),
    )
    r1 = randomized_hadamard(arch.hidden, 0)
    fuser = Fuser(checkpoint, replace(arch, spec=shifted), Rotations(r1=r1))

    def everything(name: str) -> Tensor:
        return torch.cat([rows for _, rows in fuser.rows(name)])

    for norm, linear in (("layers.0.input_layernorm", "model.layers.0.self_attn.q_proj"), ("norm", "lm_head")):
        assert bool((everything(f"model.{norm}.weight") == 0).all())
        gain = 1 + checkpoint.read(f"model.{norm}.weight")
        assert torch.allclose(
            everything(f"{linear}.weight"), checkpoint.read(f"{linear}.weight") * gain @ r1, atol=1e-13
        )


def random_transforms(folder: Path, *names: str) -> Transforms:
    """Transforms of every kind (or of those named) that the model's architecture allows."""
    checkpoint, arch = open_described(folder)
    generator = torch.Generator().manual_seed(3)
    shapes = Transforms().shapes(arch)
    maps = {name: torch.randn(shape, dtype=torch.float64, generator=generator) for name, shape in shapes.items()}
    maps["up"], maps["key"] = maps["up"].exp(), maps["key"].exp()
    maps["norm"] = maps["norm"].exp() * maps["norm"].sign()  # of either sign
    for number, norm in enumerate(arch.spec.norms):
        for layer in range(arch.n_layers if norm not in arch.spec.rotated_norms else 0):  # nothing takes its gain
            stored = checkpoint.read(f"{arch.full(layer, norm.name)}.weight").double()
            maps["norm"][layer, number] = stored + norm.offset
    maps["value"] += 3 * torch.eye(arch.head_dim, dtype=torch.float64)
    half = rotary_width(arch) // 2
    maps["key"][..., half : 2 * half] = maps["key"][..., :half]  # pairs of RoPE
    if key_factor_heads(arch) == 1:
        maps["key"] = maps["key"][:, :1].expand(shapes["key"])
    if refuses_shift(arch):
        del maps["value_shift"]
    return Transforms(**{name: value for name, value in maps.items() if not names or name in names})


@pytest.mark.parametrize(("model_type", "config", "bias"), CASES)
def test_logits_behind_every_transform_are_the_originals(
    make: Any, tmp_path: Path, model_type: str, config: dict[str, Any], bias: tuple[str, ...]
) -> None:
    folder = make(model_type, bias=bias, **config)
    rotations, transforms = all_rotations(folder), random_transforms(folder)
    out = rotated(folder, tmp_path / "out", rotations, transforms)
    capped = ARCHS[model_type].scalars.attention_cap  # transformers takes the softmax of capped scores in float32
    assert error(logits(out, rotations.r4), logits(folder)) < (1e-6 if capped else 1e-10)


@pytest.mark.parametrize("name", ["up", "value", "value_shift", "key", "norm"])
@pytest.mark.parametrize("model_type", ["llama", "phi3", "qwen3", "olmo2", "gemma3_text", "qwen3_moe"])
def test_each_transform_stands_alone(make: Any, tmp_path: Path, model_type: str, name: str) -> None:
    folder = make(model_type)
    transforms = random_transforms(folder, name)
    out = rotated(folder, tmp_path / "out", Rotations(), transforms)
    assert error(logits(out), logits(folder)) < 1e-10
    before, after = Checkpoint.open(folder), Checkpoint.open(out)
    changed = {n for n in before.entries if not torch.equal(before.read(n), after.read(n))} | (
        set(after.entries) - set(before.entries)
    )
    assert bool(changed) == ((name, model_type) not in [("value_shift", "phi3"), ("norm", "olmo2")])


@pytest.mark.parametrize("model_type", ["phi3", "llama"])  # transformers' Llama ignores the entry
def test_a_partial_rope_leaves_the_other_channels_free(make: Any, tmp_path: Path, model_type: str) -> None:
    folder = make(model_type, partial_rotary_factor=0.5)
    out = rotated(folder, tmp_path / "out", Rotations(), random_transforms(folder, "key"))
    assert error(logits(out), logits(folder)) < 1e-10


@pytest.mark.parametrize("model_type", ["mistral", "qwen2", "phi3", "mixtral"])
def test_values_are_not_shifted_without_a_bias_to_take_it_back(make: Any, model_type: str) -> None:
    checkpoint, arch = open_described(make(model_type))
    shift = torch.zeros(Transforms().shapes(arch)["value_shift"], dtype=torch.float64)
    with pytest.raises(UnsupportedError, match=rf"{model_type}: values cannot be centred: .* no bias"):
        Fuser(checkpoint, arch, Rotations(), Transforms(value_shift=shift))


def test_a_singular_map_is_refused(make: Any) -> None:
    checkpoint, arch = open_described(make("llama"))
    zeros = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in Transforms().shapes(arch).items()}
    for name, reason in (("up", "above 0"), ("key", "above 0"), ("value", "cannot be inverted")):
        with pytest.raises(InputError, match=reason):
            Fuser(checkpoint, arch, Rotations(), Transforms(**{name: zeros[name]}))
    with pytest.raises(MismatchError, match=r"transform up: is .* this model needs"):
        Fuser(checkpoint, arch, Rotations(), Transforms(up=zeros["up"][:1]))
