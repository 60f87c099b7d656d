"""dfq outliers fix: the published contrast holds, edits land where the report says, bad requests are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dfrot.checkpoint import Checkpoint
from dfrot.data.tokenizer import encode, load_tokenizer
from dfrot.errors import InputError, MismatchError, UnsupportedError
from dfrot.quant.scheme import QuantScheme
from dfrot.runtime.load import load_model
from dfrot.stages.evaluate.perplexity import evaluate
from dfrot.stages.evaluate.settings import PerplexitySettings
from dfrot.stages.outliers.fix import fix
from dfrot.stages.outliers.measure import outliers
from dfrot.stages.outliers.settings import FixSettings, OutlierSettings, RecipeSettings
from dfrot.stages.quantize.run import quantize
from dfrot.stages.quantize.settings import QuantizeSettings

MakeCheckpoint = Callable[..., Path]


def logits(folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = load_model(folder, torch.float32)(input_ids=tokens).logits
    return out


def changed(before: Path, after: Path, tokens: torch.Tensor) -> float:
    """Relative change of the logits."""
    a, b = logits(before, tokens), logits(after, tokens)
    return float((a - b).norm() / a.norm())


def settings(text_file: Path, *names: str, **more: Any) -> FixSettings:
    report = OutlierSettings(dataset=str(text_file), seqlen=128, rounds=0, perplexity=False)
    recipe = RecipeSettings(dataset=str(text_file), seqlen=64, windows=2, refine_seqlen=64)
    return FixSettings(names, report, recipe, **more)


def test_mean_is_harmless_and_zero_is_fatal_where_the_model_leans_on_it(
    small_llama: MakeCheckpoint, text_file: Path, tmp_path: Path, massive_weight: SimpleNamespace
) -> None:
    """The published contrast (Sun et al.) on a model whose later layers read the massive channel as a constant."""
    model = small_llama(change=massive_weight.change)
    tokens = encode(load_tokenizer(model), text_file.read_text())[None, :128]
    moved: dict[str, float] = {}
    for mode in ("mean", "zero"):
        fix(model, tmp_path / mode, settings(text_file, f"massive:{mode}", quantized=False))
        moved[mode] = changed(model, tmp_path / mode, tokens)
    assert moved["mean"] < 1e-3
    assert moved["zero"] > 100 * moved["mean"]
    folders = [model, tmp_path / "mean", tmp_path / "zero"]
    wanted = PerplexitySettings(dataset=str(text_file), seqlen=64, windows=4, kl=True)
    _, mean, zero = evaluate(folders, wanted)["results"]
    assert mean["kl"] < 1e-4
    assert zero["kl"] > 100 * mean["kl"]


def test_the_mean_goes_on_working_in_a_quantized_checkpoint(
    small_llama: MakeCheckpoint, text_file: Path, tmp_path: Path, massive_weight: SimpleNamespace
) -> None:
    made = fix(
        small_llama(change=massive_weight.change),
        tmp_path / "mean",
        settings(text_file, "massive:mean", quantized=False),
    )
    (reset,) = made["account"]["massive:mean"]["places"][0]["resets"]
    assert reset["module"] == "model.layers.1"
    assert reset["channel"] == massive_weight.row
    packed = tmp_path / "packed"
    quantize(tmp_path / "mean", None, packed, QuantizeSettings(scheme=QuantScheme.parse("w4a16"), algorithm="rtn"))
    assert json.loads((packed / "config.json").read_text())["quantization_config"]["resets"] == [reset]
    tokens = encode(load_tokenizer(packed), text_file.read_text())[None, :160]
    model = load_model(packed, torch.float32)
    states = model.base_model(input_ids=tokens, output_hidden_states=True).hidden_states
    values = states[2][0, :, reset["channel"]]
    carriers = tokens[0] == encode(load_tokenizer(packed), massive_weight.token)[1]
    assert int(carriers.sum()) == 3
    assert (torch.isclose(values, torch.tensor(reset["to"])) == carriers).all()  # every Z carries exactly the constant


def test_smooth_takes_the_spike_below_the_criterion(
    small_llama: MakeCheckpoint, text_file: Path, tmp_path: Path, massive_weight: SimpleNamespace
) -> None:
    model = small_llama(change=massive_weight.change)
    fix(model, tmp_path / "out", settings(text_file, "massive:smooth", quantized=False))
    report = outliers(tmp_path / "out", None, settings(text_file, "gains").outliers)
    assert report["massive"]["channels"] == []
    left = Checkpoint.open(tmp_path / "out").read("model.layers.1.mlp.down_proj.weight")[
        massive_weight.row, massive_weight.column
    ]
    assert 0 < float(left) < 40.0


def test_a_prefix_stands_before_every_text(
    small_llama: MakeCheckpoint, text_file: Path, tmp_path: Path, massive_weight: SimpleNamespace
) -> None:
    model = small_llama(change=massive_weight.change)
    made = fix(model, tmp_path / "out", settings(text_file, "prefix:tokens", quantized=True))
    before, after = (encode(load_tokenizer(folder), "abc").tolist() for folder in (model, tmp_path / "out"))
    prefix = made["account"]["prefix:tokens"]["tokens"]
    assert load_tokenizer(model).decode(prefix) == massive_weight.token
    assert after == [*prefix, *before[1:]]
    assert made["sink_tokens"] == len(prefix) == 1
    assert made["before"]["plain"]["perplexity"] > 1
    assert made["after"]["quantized"]["ratio"] > 0


def test_search_keeps_what_helps_within_its_budget(
    small_llama: MakeCheckpoint, text_file: Path, tmp_path: Path, massive_weight: SimpleNamespace
) -> None:
    wanted = settings(text_file, "gains:mean", "massive:zero", "massive:smooth", search=True, budget=3)
    made = fix(small_llama(change=massive_weight.change), tmp_path / "out", wanted)
    assert 1 <= len(made["trials"]) <= 3
    assert "gains:mean" in made["skipped"]  # no channel outlier here
    best = min([made["before"], *made["trials"]], key=lambda trial: trial["quantized"]["perplexity"])
    assert made["after"]["quantized"]["perplexity"] == best["quantized"]["perplexity"]
    assert made["fixes"] == best["fixes"]


def test_bad_requests_are_refused(
    small_llama: MakeCheckpoint, text_file: Path, tmp_path: Path, massive_weight: SimpleNamespace
) -> None:
    model = small_llama(change=massive_weight.change)
    with pytest.raises(InputError, match="unknown"):
        settings(text_file, "massive:cube")
    with pytest.raises(InputError, match="give `fixes`"):
        settings(text_file)
    with pytest.raises(UnsupportedError, match="no channel outlier"):
        fix(model, tmp_path / "out", settings(text_file, "gains:mean"))
    other = tmp_path / "report"
    outliers(small_llama("other"), other, settings(text_file, "gains").outliers)
    with pytest.raises(MismatchError, match="another checkpoint"):
        fix(model, tmp_path / "out", settings(text_file, "massive:zero"), other)
    fix(model, tmp_path / "mean", settings(text_file, "massive:mean", quantized=False))
    packed = tmp_path / "packed"
    quantize(model, None, packed, QuantizeSettings(algorithm="rtn"))
    with pytest.raises(UnsupportedError, match="original"):
        fix(packed, tmp_path / "out", settings(text_file, "massive:zero"))
    assert not (tmp_path / "out").exists()
