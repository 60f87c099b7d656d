"""What a stored tensor becomes in transformers; loading module by module gives what `from_pretrained` gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dfrot.compat.loading import load_parameters, meta_parameters, parameter_sources, tied_parameters


def stored_tensors(model: Any, folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a model as transformers writes them."""
    model.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def skeleton(model: Any) -> Any:
    """The same model without weights."""
    with meta_parameters():
        return type(model)(model.config).eval()


def test_parameters_of_new_modules_take_no_memory_and_buffers_are_real() -> None:
    with meta_parameters():
        inside = torch.nn.BatchNorm1d(4)
    assert inside.weight.is_meta
    assert not inside.weight.requires_grad
    assert not inside.running_var.is_meta
    assert not torch.nn.Linear(2, 2).weight.is_meta, "modules made later are ordinary ones"


def test_an_error_inside_ends_it_too() -> None:
    with pytest.raises(ZeroDivisionError), meta_parameters():
        _ = 1 / 0
    assert not torch.nn.Linear(2, 2).weight.is_meta


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gemma2", "mixtral", "qwen3_moe"])
def test_loading_by_the_names_found_gives_the_same_logits(
    build_model: Any, ids: torch.Tensor, tmp_path: Path, model_type: str
) -> None:
    """Experts are stored one by one and merged in the model: several stored tensors make one parameter."""
    model = build_model(model_type)
    stored, empty = stored_tensors(model, tmp_path), skeleton(model)
    sources, ignored = parameter_sources(empty, sorted(stored))
    assert ignored == []
    tied = tied_parameters(empty)
    assert set(sources) | set(tied) == set(model.state_dict())
    assert sorted(name for names in sources.values() for name in names) == sorted(stored)
    merged = {parameter for parameter, names in sources.items() if len(names) > 1}
    assert bool(merged) == (model_type in ("mixtral", "qwen3_moe"))
    load_parameters(empty, stored, torch.float32)
    empty.tie_weights()
    with torch.no_grad():
        assert torch.equal(empty(input_ids=ids).logits, model(input_ids=ids).logits)


def test_one_module_is_loaded_and_the_others_stay_empty(build_model: Any, tmp_path: Path) -> None:
    model = build_model()
    stored, empty = stored_tensors(model, tmp_path), skeleton(model)
    block = {name: tensor.bfloat16() for name, tensor in stored.items() if name.startswith("model.layers.1.")}
    load_parameters(empty, block, torch.float32)
    loaded = {name for name, parameter in empty.named_parameters() if not parameter.is_meta}
    assert loaded == set(block)
    weight = empty.model.layers[1].mlp.up_proj.weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight, block["model.layers.1.mlp.up_proj.weight"].float())


def test_names_are_mapped_before_they_are_looked_up_and_unknown_ones_are_told(build_model: Any, tmp_path: Path) -> None:
    model = build_model()
    stored = stored_tensors(model, tmp_path)
    renamed = sorted("wrapped." + name for name in stored)
    sources, ignored = parameter_sources(skeleton(model), [*renamed, "extra.weight"], {r"^wrapped\.": ""})
    assert ignored == ["extra.weight"]
    assert sources["model.norm.weight"] == ["wrapped.model.norm.weight"]


@pytest.mark.parametrize("tied", [True, False])
def test_tied_parameters_are_those_of_the_configuration(build_model: Any, tied: bool) -> None:
    found = tied_parameters(build_model(tie_word_embeddings=tied))
    assert found == ({"lm_head.weight": "model.embed_tokens.weight"} if tied else {})
