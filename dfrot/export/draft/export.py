"""`dfq draft export`: an eagle3 or dflash draft in the `speculators` layout, which vLLM loads, or as a GGUF file of
llama.cpp.

Only names, order of rows and the config change; weights are copied. A dream draft cross-attends to a growing set of
target features, which no serving engine supports, so it is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dfrot.checkpoint import Checkpoint
from dfrot.draft.models.base import Draft
from dfrot.draft.models.config import DraftConfig
from dfrot.draft.models.dflash import DFlashDraft
from dfrot.draft.models.eagle3 import Eagle3Draft
from dfrot.draft.store import WEIGHTS, check_target, load_draft
from dfrot.errors import UnsupportedError
from dfrot.export.gguf.draft import write_draft
from dfrot.export.gguf.writer import FILE_NAME
from dfrot.export.serving.command import SPECULATIVE_TOKENS
from dfrot.files import file_sha256, write_json
from dfrot.inputs import open_model
from dfrot.stage_folder import open_stage, read_record, refuse_inputs
from dfrot.tensor_file import save_tensors

KIND = "draft export"
FORMATS = ("speculators", "gguf")
MASK = "mask_embedding"  # engines look the mask token up in the target's table


def export_draft(
    model: Path,
    draft: Path,
    out: Path,
    verifier: str,
    kind: str = FORMATS[0],
    *,
    resume: bool | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Publish a draft in the format `kind` as the folder `out`; returns its `stage.json`.

    speculators: config.json and model.safetensors. gguf: model.gguf. verifier: the name or path by which engines find
    the target (speculators). Raises UnsupportedError for a dream draft and for a rounded one, MismatchError for a
    draft of another target."""
    refuse_inputs(out, model, draft)
    loaded = load_draft(draft)
    if not isinstance(loaded, (Eagle3Draft, DFlashDraft)):
        raise UnsupportedError(
            f"{draft}: a dream draft reads a growing set of target features, which no serving engine offers; export an "
            "eagle3 trained beside it (dfq draft train with `arch` eagle3, on the same features), or decode with dfq",
            field="arch",
            file=draft,
        )
    if loaded.config.quantized:
        raise UnsupportedError(
            f"{draft}: has {loaded.config.quantized}, which engines do not read; train one without `quantize`",
            field="quantize",
            file=draft,
        )
    target = open_model(model)
    check_target(loaded.config, model, int(target.config["vocab_size"]), int(target.config["hidden_size"]))
    digest = file_sha256(draft / WEIGHTS)
    request = {"draft": loaded.config.to_dict(), "weights": digest, "verifier": verifier, "format": kind}
    with open_stage(out, KIND, request, resume, overwrite) as stage:
        if not stage.finished:
            if kind == "gguf":
                tensors, file = _weights(loaded, target), stage.folder / FILE_NAME
                write_draft(loaded.config, tensors, loaded.token_ids, target.path, target.config, file)
            else:
                save_tensors(stage.folder / "model.safetensors", _tensors(loaded, target))
                write_json(stage.folder / "config.json", speculators_config(loaded.config, target.config, verifier))
            stage.publish({"parameters": loaded.count()})
    return read_record(out, KIND)


def _weights(draft: Draft, target: Checkpoint) -> dict[str, torch.Tensor]:
    """The draft's weights in bfloat16 by our names; for a block draft with a vocabulary of its own, its head."""
    state = {name: value for name, value in draft.state_dict().items() if name not in (MASK, "d2t")}
    tensors = {name: value.to(torch.bfloat16) for name, value in state.items()}
    if not isinstance(draft, Eagle3Draft) and draft.token_ids is not None:
        tensors["lm_head.weight"] = _head(target)[draft.token_ids].to(torch.bfloat16)
    return tensors


def _tensors(draft: Draft, target: Checkpoint) -> dict[str, torch.Tensor]:
    """Weights under the names of speculators, and for a draft with a vocabulary of its own (eagle3: always) both maps
    between the vocabularies and a head of its rows."""
    tensors = _weights(draft, target)
    size, ids = draft.config.vocab_size, draft.token_ids
    if isinstance(draft, Eagle3Draft):
        tensors["embed_tokens.weight"] = _table(target, "embed_tokens.weight").to(torch.bfloat16)
        ids = torch.arange(size) if ids is None else ids
    if ids is not None:
        tensors["d2t"] = ids - torch.arange(len(ids))  # target id minus draft id
        tensors["t2d"] = torch.zeros(size, dtype=torch.bool).index_fill_(0, ids, True)
    return tensors


def _table(target: Checkpoint, name: str) -> torch.Tensor:
    return target.read(next(entry for entry in target.entries if entry.endswith(name)))


def _head(target: Checkpoint) -> torch.Tensor:
    """The head's weight in 16 bits, the embedding where it is tied; a draft was trained through it, so it is dense."""
    separate = any(entry.endswith("lm_head.weight") for entry in target.entries)
    return _table(target, "lm_head.weight" if separate else "embed_tokens.weight")


def speculators_config(draft: DraftConfig, target: dict[str, Any], verifier: str) -> dict[str, Any]:
    """config.json of an Eagle3Speculator or a DFlashSpeculator. target: the target's config.json. verifier: its name or
    path."""
    blocks = draft.arch == "dflash"
    layer = {
        "model_type": "qwen3" if blocks else "llama",
        "architectures": ["Qwen3ForCausalLM" if blocks else "LlamaForCausalLM"],
        "hidden_size": draft.hidden_size,
        "intermediate_size": draft.intermediate_size,
        "num_attention_heads": draft.num_attention_heads,
        "num_key_value_heads": draft.num_key_value_heads,
        "head_dim": draft.head_dim,
        "num_hidden_layers": draft.num_layers if blocks else 1,
        "vocab_size": draft.vocab_size,
        "rms_norm_eps": draft.rms_norm_eps,
        "rope_theta": draft.rope_theta,
        "max_position_embeddings": draft.max_position_embeddings,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    }
    if blocks:
        layer["layer_types"] = ["full_attention"] * draft.num_layers
    proposal = {
        "proposal_type": "greedy",
        "speculative_tokens": draft.block_size - 1 if blocks else SPECULATIVE_TOKENS,
        "verifier_accept_k": 1,
        "accept_tolerance": 0.0,
    }
    return {
        "architectures": ["DFlashSpeculator" if blocks else "Eagle3Speculator"],
        "speculators_model_type": draft.arch,
        "speculators_version": "0.3.0",
        "draft_vocab_size": draft.proposed_size,
        "target_hidden_size": draft.target_hidden_size,
        **(_of_blocks(draft) if blocks else _of_eagle3(draft)),
        "transformer_layer_config": layer,
        "dtype": "bfloat16",
        "speculators_config": {
            "algorithm": draft.arch,
            "default_proposal_method": "greedy",
            "proposal_methods": [proposal],
            "verifier": {"name_or_path": verifier, "architectures": target.get("architectures") or []},
        },
    }


def _of_eagle3(draft: DraftConfig) -> dict[str, Any]:
    return {
        "norm_before_residual": False,
        "norm_before_fc": False,
        "fc_norm": False,
        "norm_output": False,
        "embed_requires_grad": False,
        "eagle_aux_hidden_state_layer_ids": list(draft.aux_layers),
    }


def _of_blocks(draft: DraftConfig) -> dict[str, Any]:
    # the id of an aux layer is that of the layer whose input it is, so the number of the layer whose output it is
    return {
        "block_size": draft.block_size,
        "aux_hidden_state_layer_ids": list(draft.aux_layers),
        "mask_token_id": draft.mask_token_id,
        "sample_from_anchor": False,
        "sliding_window_non_causal": False,
    }
