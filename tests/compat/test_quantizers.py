"""transformers calls a registered quantizer before and after it loads weights, with the files and the conversions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dfrot.compat import quantizers

METHOD = "dfq-compat-test"
HfQuantizer, QuantizationConfigMixin = quantizers.plugin_bases()


class RecordingConfig(QuantizationConfigMixin):  # type: ignore[misc]
    def __init__(self, **entry: Any) -> None:
        self.quant_method = METHOD
        self.entry = entry

    def to_dict(self) -> dict[str, Any]:
        return {"quant_method": METHOD, **self.entry}


class RecordingQuantizer(HfQuantizer):  # type: ignore[misc]
    requires_calibration = True
    requires_parameters_quantization = False
    calls: list[tuple[str, Any]] = []  # noqa: RUF012

    def _process_model_before_weight_loading(self, model: nn.Module, checkpoint_files: Any = None, **_: Any) -> None:
        is_meta = next(model.parameters()).device.type == "meta"
        self.calls.append(("before", (is_meta, checkpoint_files, self.quantization_config.entry)))

    def _process_model_after_weight_loading(self, model: nn.Module, **_: Any) -> nn.Module:
        self.calls.append(("after", next(model.parameters()).device.type))
        return model

    def update_weight_conversions(self, weight_conversions: list[Any], *rest: Any) -> list[Any]:
        self.calls.append(("conversions", len(weight_conversions)))
        return quantizers.without_converters(weight_conversions)

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False


@pytest.fixture
def folder(build_model: Any, tmp_path: Path) -> Path:
    build_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": METHOD, "setting": 3}
    (tmp_path / "config.json").write_text(json.dumps(config))
    quantizers.register(METHOD, RecordingConfig, RecordingQuantizer)
    quantizers.register(METHOD, RecordingConfig, RecordingQuantizer)
    RecordingQuantizer.calls.clear()
    return tmp_path


def test_the_order_of_calls_and_their_arguments(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    calls = dict(RecordingQuantizer.calls)
    names = [name for name, _ in RecordingQuantizer.calls]
    assert names.index("before") < names.index("after")
    is_meta, files, entry = calls["before"]
    assert is_meta, "modules are replaced before they hold weights"
    assert [Path(file).name for file in files] == ["model.safetensors"]
    assert entry["setting"] == 3
    assert calls["after"] == "cpu"


def test_conversions_reach_the_quantizer(build_model: Any, tmp_path: Path) -> None:
    """A mixture's experts are merged by WeightConverters, which `update_weight_conversions` may drop."""
    from transformers import AutoModelForCausalLM

    build_model("mixtral").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": METHOD}
    (tmp_path / "config.json").write_text(json.dumps(config))
    quantizers.register(METHOD, RecordingConfig, RecordingQuantizer)
    RecordingQuantizer.calls.clear()
    _, info = AutoModelForCausalLM.from_pretrained(tmp_path, local_files_only=True, output_loading_info=True)
    assert dict(RecordingQuantizer.calls)["conversions"] > 0
    assert any("experts" in name for name in info["missing_keys"]), "the merged tensors were not built"


def test_renamings_are_no_converters() -> None:
    from transformers.core_model_loading import WeightConverter, WeightRenaming

    renaming = WeightRenaming("a", "b")
    assert not isinstance(renaming, WeightConverter)
    assert quantizers.without_converters([renaming]) == [renaming]


def test_loading_info_names_what_got_no_tensor(build_model: Any, tmp_path: Path) -> None:
    """`missing_keys` and `mismatched_keys` of the loading info are collections of tensor names."""
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    build_model().save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["model.norm.weight"]
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with torch.no_grad():
        _, info = AutoModelForCausalLM.from_pretrained(tmp_path, local_files_only=True, output_loading_info=True)
    assert {str(name) for name in info["missing_keys"]} == {"model.norm.weight"}
    assert not info["mismatched_keys"]
