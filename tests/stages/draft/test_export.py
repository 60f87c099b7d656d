"""Export of drafts to serving engines."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dfrot.checkpoint import Checkpoint
from dfrot.draft.models.base import Draft
from dfrot.draft.store import save_draft
from dfrot.errors import UnsupportedError
from dfrot.export.draft.export import export_draft
from dfrot.vision.fingerprint import checkpoint_fingerprint


def test_export_of_eagle3(kit: SimpleNamespace, tmp_path: Path, reference: Path) -> None:
    from dfrot.arch import open_described
    from dfrot.draft.models.build import build, config_for

    _, arch = open_described(reference)
    mark = checkpoint_fingerprint(reference)
    for kind in ("eagle3", "dream"):
        folder = tmp_path / kind
        folder.mkdir()
        save_draft(folder, build(config_for(arch, kind, intermediate_size=64, target_fingerprint=mark)))
    with pytest.raises(UnsupportedError, match="no serving engine offers; export an eagle3 trained beside it"):
        export_draft(reference, tmp_path / "dream", tmp_path / "out", "me/model")
    export_draft(reference, tmp_path / "eagle3", tmp_path / "out", "me/model")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["speculators_model_type"] == "eagle3"
    assert config["architectures"] == ["Eagle3Speculator"]
    assert config["speculators_config"]["verifier"]["name_or_path"] == "me/model"
    assert len(config["eagle_aux_hidden_state_layer_ids"]) == 3
    flags = {name: config[name] for name in ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output")}
    assert not any(flags.values()), "every flag is written: absent ones mean different things to engines"
    names = set(Checkpoint.open(tmp_path / "out").entries)
    attention = {f"layers.0.self_attn.{part}_proj.weight" for part in "qkvo"}
    assert attention | {"fc.weight", "norm.weight", "lm_head.weight", "embed_tokens.weight", "d2t", "t2d"} <= names
    few = tmp_path / "few"
    few.mkdir()
    trimmed = build(config_for(arch, "eagle3", intermediate_size=64, target_fingerprint=mark, draft_vocab_size=50))
    trimmed.choose_tokens(torch.arange(7, 507, 10))
    save_draft(few, trimmed)
    export_draft(reference, few, tmp_path / "out-few", "me/model")
    config = json.loads((tmp_path / "out-few" / "config.json").read_text())
    assert config["draft_vocab_size"] == 50
    exported = Checkpoint.open(tmp_path / "out-few")
    assert torch.equal(exported.read("d2t") + torch.arange(50), torch.arange(7, 507, 10))
    assert exported.read("t2d").nonzero().flatten().tolist() == list(range(7, 507, 10))
    assert tuple(exported.entries["lm_head.weight"].shape) == (50, arch.hidden)
    assert {"layers.0.hidden_norm.weight", "layers.0.input_layernorm.weight"} <= names


@pytest.mark.parametrize("trimmed", [False, True])
def test_export_of_dflash(tmp_path: Path, reference: Path, trimmed: bool) -> None:
    from dfrot.arch import open_described
    from dfrot.draft.models.build import build, config_for

    source, arch = open_described(reference)
    sizes = {"intermediate_size": 64, "num_layers": 2, "block_size": 6, "draft_vocab_size": 50 if trimmed else 0}
    draft = build(config_for(arch, "dflash", target_fingerprint=checkpoint_fingerprint(reference), **sizes))
    ids = torch.arange(7, 507, 10)
    if trimmed:
        draft.choose_tokens(ids)
    (tmp_path / "draft").mkdir()
    save_draft(tmp_path / "draft", draft)
    export_draft(reference, tmp_path / "draft", tmp_path / "out", "me/model")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["speculators_model_type"], config["architectures"]) == ("dflash", ["DFlashSpeculator"])
    assert (config["block_size"], config["mask_token_id"]) == (6, arch.sizes["vocab"] - 1)
    assert config["speculators_config"]["proposal_methods"][0]["speculative_tokens"] == 5
    layer = config["transformer_layer_config"]
    assert (layer["model_type"], layer["num_hidden_layers"], layer["layer_types"]) == (
        "qwen3",
        2,
        ["full_attention"] * 2,
    )
    exported = Checkpoint.open(tmp_path / "out")
    names = {f"layers.{n}.self_attn.{part}.weight" for n in (0, 1) for part in ("q_norm", "k_norm", "q_proj", "o_proj")}
    assert names | {"fc.weight", "hidden_norm.weight", "norm.weight"} <= set(exported.entries)
    assert not {"mask_embedding", "embed_tokens.weight"} & set(exported.entries), "the target's own are used"
    assert ({"d2t", "t2d", "lm_head.weight"} <= set(exported.entries)) == trimmed
    if trimmed:
        name = next(entry for entry in source.entries if entry.endswith("lm_head.weight"))
        assert torch.equal(exported.read("lm_head.weight"), source.read(name)[ids].to(torch.bfloat16))


def gguf_of(draft: Draft, reference: Path, tmp_path: Path) -> Any:
    """The draft's GGUF file, opened."""
    gguf = pytest.importorskip("gguf")
    (tmp_path / "draft").mkdir()
    save_draft(tmp_path / "draft", draft)
    export_draft(reference, tmp_path / "draft", tmp_path / "out", "me/model", "gguf")
    return gguf.GGUFReader(tmp_path / "out" / "model.gguf")


def values(reader: Any, name: str) -> torch.Tensor:
    """A bfloat16 matrix of a GGUF file."""
    data = next(tensor.data for tensor in reader.tensors if tensor.name == name)
    return torch.from_numpy(data.copy()).view(torch.bfloat16)


@pytest.mark.parametrize("kind", ["eagle3", "dflash"])
def test_gguf_of_a_trimmed_draft(tmp_path: Path, reference: Path, kind: str) -> None:
    """llama.cpp's names; pairs of its RoPE are neighbours in eagle3 alone; `d2t` holds the target's own ids."""
    from dfrot.arch import open_described
    from dfrot.draft.models.build import build, config_for

    source, arch = open_described(reference)
    sizes = {"num_layers": 2, "block_size": 6} if kind == "dflash" else {}
    config = config_for(
        arch,
        kind,
        intermediate_size=64,
        target_fingerprint=checkpoint_fingerprint(reference),
        draft_vocab_size=50,
        **sizes,
    )
    draft, ids = build(config), torch.arange(7, 507, 10)
    draft.choose_tokens(ids)
    reader = gguf_of(draft, reference, tmp_path)
    layers = config.num_layers if kind == "dflash" else 1
    parts = {"attn_norm", "ffn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"}
    parts |= {"attn_norm_2"} if kind == "eagle3" else {"attn_q_norm", "attn_k_norm"}
    names = {f"blk.{layer}.{part}.weight" for layer in range(layers) for part in parts}
    names |= {"fc.weight", "output_norm.weight", "output.weight", "d2t"}
    names |= {"enc.output_norm.weight"} if kind == "dflash" else set()
    assert {tensor.name for tensor in reader.tensors} == names
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == kind
    assert fields[f"{kind}.target_layers"] == list(config.aux_layers)
    assert fields[f"{kind}.target_hidden_size"] == arch.hidden
    assert len(fields["tokenizer.ggml.tokens"]) == config.vocab_size
    assert next(tensor.data for tensor in reader.tensors if tensor.name == "d2t").tolist() == ids.tolist()
    state = {name: value.to(torch.bfloat16) for name, value in draft.state_dict().items()}
    keys, heads = state["layers.0.self_attn.k_proj.weight"], config.num_key_value_heads
    half = config.head_dim // 2
    first = values(reader, "blk.0.attn_k.weight").unflatten(0, (heads, 2 * half))[0]
    assert torch.equal(first[1], keys[half if kind == "eagle3" else 1])
    assert torch.equal(values(reader, "fc.weight"), state["fc.weight"])
    if kind == "dflash":
        head = source.read(next(entry for entry in source.entries if entry.endswith("lm_head.weight")))
        assert torch.equal(values(reader, "output.weight"), head[ids].to(torch.bfloat16))
        assert (fields["dflash.block_size"], fields["tokenizer.ggml.mask_token_id"]) == (6, config.mask_token_id)
        assert fields["dflash.attention.causal"] is False


def test_gguf_of_a_whole_vocabulary_needs_no_map(tmp_path: Path, reference: Path) -> None:
    from dfrot.arch import open_described
    from dfrot.draft.models.build import build, config_for

    mark = checkpoint_fingerprint(reference)
    draft = build(config_for(open_described(reference)[1], "eagle3", intermediate_size=64, target_fingerprint=mark))
    names = {tensor.name for tensor in gguf_of(draft, reference, tmp_path).tensors}
    assert "output.weight" in names
    assert not {"d2t", "token_embd.weight"} & names, "the target's embedding is used"
