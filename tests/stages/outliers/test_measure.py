"""The report finds what was planted, where it was planted, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dfrot import reference
from dfrot.stages.outliers.measure import outliers
from dfrot.stages.outliers.settings import OutlierSettings

MakeCheckpoint = Callable[..., Path]
QUICK: dict[str, Any] = {"dataset": "stdlib", "seqlen": 512, "rounds": 5, "perplexity": False}


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return outliers(reference.path(), None, OutlierSettings(**QUICK))


def test_massive_activations_are_the_planted_ones(report: dict[str, Any], planted_outliers: SimpleNamespace) -> None:
    massive = report["massive"]
    assert {channel["channel"] for channel in massive["channels"]} == set(planted_outliers.massive)
    for channel in massive["channels"]:
        assert channel["values"][0] == pytest.approx(planted_outliers.massive[channel["channel"]], rel=0.01)
        assert channel["created"] == "model.embed_tokens"
        assert channel["ends"] is None
        assert {token["id"] for token in channel["tokens"]} == planted_outliers.tokens
    assert [place["where"] for place in massive["created"]] == ["model.embed_tokens"]
    sources = {(origin["row"], origin["channel"]) for origin in massive["created"][0]["origins"]}
    assert sources == {(token, channel) for token in planted_outliers.tokens for channel in planted_outliers.massive}


def test_ablation_confirms_the_source(report: dict[str, Any]) -> None:
    ablation = report["massive"]["ablation"]
    assert ablation["confirmed"]
    assert len(ablation["massive_left"]) == 17
    assert ablation["perplexity"][1] > ablation["perplexity"][0]


def test_channel_outliers_are_the_planted_ones_and_come_from_the_gain(
    report: dict[str, Any], planted_outliers: SimpleNamespace
) -> None:
    assert {channel["channel"] for channel in report["channel_outliers"]} == set(planted_outliers.gains)
    assert all(outlier["explained_by_gain"] > 0.8 for outlier in report["channel_outliers"])
    assert all(outlier["ratio_without_gain"] < 2 for outlier in report["channel_outliers"])
    assert all(0.3 < outlier["read_energy_over_median"] < 3 for outlier in report["channel_outliers"])


def test_rotations_in_the_order_of_the_paper(report: dict[str, Any]) -> None:
    methods = report["token_errors"]["methods"]
    assert methods["refined"]["massive"] < methods["hadamard"]["massive"] < methods["orthogonal"]["massive"]
    assert methods["hadamard"]["common"] < methods["none"]["common"]
    assert methods["orthogonal"]["common"] == pytest.approx(methods["hadamard"]["common"], rel=0.02)


def test_the_model_without_planted_outliers_has_none(reference_without_outliers: Path) -> None:
    report = outliers(reference_without_outliers, None, OutlierSettings(**QUICK))
    assert report["massive"]["channels"] == []
    assert report["massive"]["created"] == []
    assert report["massive"]["ablation"] is None
    assert report["channel_outliers"] == []
    assert report["recommendation"]["sink_tokens"] == 0


def test_a_spike_made_by_one_down_proj_entry_is_traced_to_it(
    small_llama: MakeCheckpoint, text_file: Path, massive_weight: SimpleNamespace
) -> None:
    report = outliers(
        small_llama(change=massive_weight.change), None, OutlierSettings(dataset=str(text_file), seqlen=128, rounds=2)
    )
    massive = report["massive"]
    (channel,) = massive["channels"]
    assert channel["channel"] == massive_weight.row
    assert [token["text"] for token in channel["tokens"]] == [massive_weight.token]
    assert channel["created"] == "model.layers.1.mlp.down_proj"
    (place,) = massive["created"]
    assert place["kind"] == "mlp"
    for origin in place["origins"]:
        (term,) = origin["terms"]
        assert term["column"] == massive_weight.column
        assert term["share"] > 0.9
        assert set(term["factors"]) == {"gate_proj", "up_proj"}
        gate, up = term["factors"]["gate_proj"], term["factors"]["up_proj"]
        assert term["activation"] == pytest.approx(float(torch.nn.functional.silu(torch.tensor(gate))) * up, rel=1e-4)
    assert massive["ablation"]["confirmed"]
    assert massive["ablation"]["removed"] == ["model.layers.1.mlp.down_proj: 1 weights"]


def test_the_stream_without_the_spike_is_the_model_with_that_weight_at_zero(
    small_llama: MakeCheckpoint, text_file: Path, massive_weight: SimpleNamespace
) -> None:
    """The ablation's perplexity is that of a checkpoint which really lacks the weight."""

    def without(tensors: dict[str, torch.Tensor]) -> None:
        massive_weight.change(tensors)
        tensors["model.layers.1.mlp.down_proj.weight"][massive_weight.row, massive_weight.column] = 0.0

    from dfrot.outliers.measure.loss import window_nll
    from dfrot.outliers.measure.subject import Subject
    from dfrot.stages.outliers.measure import prepare

    settings = OutlierSettings(dataset=str(text_file), seqlen=128, rounds=2)
    ablation = outliers(small_llama("spiked", change=massive_weight.change), None, settings)["massive"]["ablation"]
    plan = prepare(small_llama("without", change=without), settings)
    subject, tokens = plan.subject, plan.tokens
    assert isinstance(subject, Subject)
    hidden = subject.runner.embed(tokens[:1])
    for layer in range(3):
        hidden = subject.runner.run(subject.block(layer), hidden)
    nll = window_nll(subject.runner, hidden[0], tokens[0])
    assert ablation["perplexity"][1] == pytest.approx(float(torch.tensor(nll).exp()), rel=1e-4)


def test_several_windows_agree_with_one(
    small_llama: MakeCheckpoint, text_file: Path, massive_weight: SimpleNamespace
) -> None:
    model = small_llama(change=massive_weight.change)
    for windows in (1, 3):
        report = outliers(model, None, OutlierSettings(dataset=str(text_file), seqlen=64, windows=windows, rounds=2))
        assert [channel["channel"] for channel in report["massive"]["channels"]] == [massive_weight.row]
        assert len(report["layers"]) == 3
        assert report["data"]["bos"] == "at the start of every window"
