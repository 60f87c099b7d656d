"""`dfq draft export`: an eagle3 draft in the `speculators` layout, which vLLM loads and SGLang converts.

Only names and the config change; weights are copied. A dream draft cross-attends to a growing set of target features,
which no serving engine supports, so it is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dfrot.checkpoint import Checkpoint
from dfrot.draft.models.config import DraftConfig
from dfrot.draft.models.eagle3 import Eagle3Draft
from dfrot.draft.store import check_target, load_draft
from dfrot.errors import UnsupportedError
from dfrot.files import write_json
from dfrot.inputs import open_model
from dfrot.stage_folder import open_stage, read_record
from dfrot.tensor_file import save_tensors

KIND = "draft export"
SPECULATIVE_TOKENS = 3  # draft tokens per round that engines use by default


def export_draft(
    model: Path, draft: Path, out: Path, verifier: str, *, resume: bool | None = None, overwrite: bool = False
) -> dict[str, Any]:
    """Publish `out` with config.json and model.safetensors; returns its `stage.json`. verifier: the name or path by
    which engines find the target. Raises UnsupportedError for a dream draft, MismatchError for a draft of another
    target."""
    loaded = load_draft(draft)
    if not isinstance(loaded, Eagle3Draft):
        raise UnsupportedError(
            f"{draft}: a dream draft reads a growing set of target features, which no serving engine offers; "
            "train one with `arch` eagle3, or decode with dfq draft generate",
            field="arch",
            file=draft,
        )
    target = open_model(model)
    check_target(loaded.config, model, int(target.config["vocab_size"]), int(target.config["hidden_size"]))
    request = {"draft": loaded.config.to_dict(), "verifier": verifier, "format": "speculators"}
    with open_stage(out, KIND, request, resume, overwrite) as stage:
        if not stage.finished:
            save_tensors(stage.folder / "model.safetensors", _tensors(loaded, target))
            write_json(stage.folder / "config.json", speculators_config(loaded.config, target.config, verifier))
            stage.publish({"parameters": loaded.count()})
    return read_record(out, KIND)


def _tensors(draft: Eagle3Draft, target: Checkpoint) -> dict[str, torch.Tensor]:
    """Weights under the names of that format, and both maps between the vocabularies."""
    tensors = {name: value.to(torch.bfloat16) for name, value in draft.state_dict().items()}
    size = draft.config.vocab_size
    embed = next(name for name in target.entries if name.endswith("embed_tokens.weight"))
    tensors["embed_tokens.weight"] = target.read(embed).to(torch.bfloat16)
    ids = torch.arange(size) if draft.token_ids is None else draft.token_ids
    tensors["d2t"] = ids - torch.arange(len(ids))  # target id minus draft id
    tensors["t2d"] = torch.zeros(size, dtype=torch.bool).index_fill_(0, ids, True)
    return tensors


def speculators_config(draft: DraftConfig, target: dict[str, Any], verifier: str) -> dict[str, Any]:
    """config.json of an Eagle3Speculator. target: the target's config.json. verifier: its name or path."""
    layer = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": draft.hidden_size,
        "intermediate_size": draft.intermediate_size,
        "num_attention_heads": draft.num_attention_heads,
        "num_key_value_heads": draft.num_key_value_heads,
        "head_dim": draft.head_dim,
        "num_hidden_layers": 1,
        "vocab_size": draft.vocab_size,
        "rms_norm_eps": draft.rms_norm_eps,
        "rope_theta": draft.rope_theta,
        "max_position_embeddings": draft.max_position_embeddings,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    }
    proposal = {
        "proposal_type": "greedy",
        "speculative_tokens": SPECULATIVE_TOKENS,
        "verifier_accept_k": 1,
        "accept_tolerance": 0.0,
    }
    return {
        "architectures": ["Eagle3Speculator"],
        "speculators_model_type": "eagle3",
        "speculators_version": "0.3.0",
        "draft_vocab_size": draft.proposed_size,
        "target_hidden_size": draft.target_hidden_size,
        "norm_before_residual": False,
        "norm_before_fc": False,
        "embed_requires_grad": False,
        "eagle_aux_hidden_state_layer_ids": list(draft.aux_layers),
        "transformer_layer_config": layer,
        "dtype": "bfloat16",
        "speculators_config": {
            "algorithm": "eagle3",
            "default_proposal_method": "greedy",
            "proposal_methods": [proposal],
            "verifier": {"name_or_path": verifier, "architectures": target.get("architectures") or []},
        },
    }
