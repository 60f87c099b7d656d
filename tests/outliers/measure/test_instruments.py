"""The instruments of the measurement against straightforward computation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dfrot.outliers.measure import quantization_errors as errors
from dfrot.outliers.measure.block_view import BlockView, observe
from dfrot.outliers.measure.criteria import Criteria, entries
from dfrot.outliers.measure.loss import window_nll
from dfrot.outliers.measure.sinks import attention
from dfrot.outliers.measure.sketch import ChannelSketch
from dfrot.outliers.measure.subject import Subject
from dfrot.quant.activations import fake_quantize
from dfrot.quant.scheme import QuantScheme
from dfrot.runtime.load import load_model
from dfrot.stages.quantize.run import QuantizeSettings, quantize

Make = Callable[..., Path]


def test_sketch_quantiles_are_near_the_exact_ones() -> None:
    rows = torch.randn(1001, 24) * torch.logspace(-3, 3, 24)
    sketch = ChannelSketch(24)
    sketch.add(rows)
    for share in (0.1, 0.5, 0.9):
        torch.testing.assert_close(sketch.quantile(share), rows.abs().quantile(share, 0), rtol=0.05, atol=0)
    torch.testing.assert_close(sketch.mean_square(), rows.double().square().mean(0))
    assert torch.equal(sketch.absmax, rows.abs().amax(0))


def test_sketches_add_up() -> None:
    rows = torch.randn(700, 8)
    whole, left, right = ChannelSketch(8), ChannelSketch(8), ChannelSketch(8)
    whole.add(rows)
    left.add(rows[:300])
    right.add(rows[300:])
    left.merge(right)
    assert torch.equal(left.bins, whole.bins)
    assert torch.equal(left.median(), whole.median())
    assert left.kurtosis() == pytest.approx(whole.kurtosis())


def test_share_above_counts_tokens() -> None:
    sketch = ChannelSketch(2)
    sketch.add(torch.tensor([[1.0, 100.0]] * 30 + [[64.0, 0.0]] * 10))
    assert sketch.share_above(16.0).tolist() == [0.25, 0.75]


def test_a_gaussian_has_kurtosis_three_and_a_spike_the_width() -> None:
    gaussian, pointed = ChannelSketch(512), ChannelSketch(512)
    gaussian.add(torch.randn(200, 512))
    rows = torch.zeros(10, 512)
    rows[:, 3] = 5.0
    pointed.add(rows)
    assert gaussian.kurtosis() == pytest.approx(3.0, rel=0.05)
    assert pointed.kurtosis() == pytest.approx(512.0)


def test_criterion_is_the_published_one_at_width_4096() -> None:
    hidden = torch.full((4, 4096), 0.5)
    hidden[1, 7], hidden[2, 9] = 499.0, -501.0
    assert entries(hidden, Criteria().limit(hidden)).tolist() == [[2, 9]]
    quiet = hidden / 10  # the ratio holds, the absolute threshold does not
    assert len(entries(quiet, Criteria().limit(quiet))) == 0


def test_hadamard_errors_are_taken_back_into_the_own_basis() -> None:
    rows = torch.randn(20, 48)
    torch.testing.assert_close(errors.back(errors.hadamard(rows), None), rows, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(errors.back(errors.hadamard(rows, 16), 16), rows, atol=1e-5, rtol=1e-5)


def test_activation_error_is_what_rounding_does_to_the_output() -> None:
    rows, weight, massive = torch.randn(64, 32), torch.randn(8, 32), torch.zeros(64, dtype=torch.bool)
    found = errors.activation_errors(rows, massive, [weight], None, None, False)["none"]
    lost = fake_quantize(rows, 4, False) - rows
    assert found["relative"] == pytest.approx(float(lost.square().sum() / rows.square().sum()), rel=1e-5)
    output = (lost @ weight.T).square().sum() / (rows @ weight.T).square().sum()
    assert found["output"] == pytest.approx(float(output), rel=1e-5)


def test_folding_a_gain_takes_its_outliers_out_of_the_activations() -> None:
    gain = torch.ones(32)
    gain[3] = 30.0
    rows, weight = torch.randn(256, 32) * gain, torch.randn(8, 32) / gain
    none = torch.zeros(256, dtype=torch.bool)
    found = errors.activation_errors(rows, none, [weight], gain, None, True)
    assert found["hadamard"]["output"] < 0.1 * found["none"]["output"]


def test_attention_is_that_of_transformers(make: Make) -> None:
    folder = make()
    subject = Subject(folder)
    tokens = torch.randint(0, 256, (40,))
    view = BlockView(0, 0, tokens, subject.runner.embed(tokens[None])[0])
    out = observe(subject.runner, subject.block(0), subject.arch, view, None)
    found, picked = attention(view)
    model = load_model(folder)
    model.set_attn_implementation("eager")
    result = model(input_ids=tokens[None], output_attentions=True, output_hidden_states=True)
    torch.testing.assert_close(found, result.attentions[0][0][:, picked], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(out, result.hidden_states[1][0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(view.states["mlp.down_proj"], out, atol=1e-5, rtol=1e-5)


def test_streamed_loss_is_the_models(make: Make) -> None:
    folder = make()
    subject = Subject(folder)
    tokens = torch.randint(0, 256, (30,))
    hidden = subject.runner.embed(tokens[None])
    for layer in range(3):
        hidden = subject.runner.run(subject.block(layer), hidden)
    expected = load_model(folder)(input_ids=tokens[None], labels=tokens[None]).loss
    assert window_nll(subject.runner, hidden[0], tokens) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("fake", [False, True])
def test_a_quantized_checkpoint_runs_as_it_would_when_loaded(make: Make, tmp_path: Path, fake: bool) -> None:
    scheme = QuantScheme.parse("w4a4kv4")
    packed = tmp_path / "packed"
    quantize(make(), None, packed, QuantizeSettings(scheme=scheme, algorithm="rtn", fake=fake))
    subject = Subject(packed)
    assert subject.kind == "w4a4kv4"
    tokens = torch.randint(0, 256, (24,))
    hidden = subject.runner.embed(tokens[None])[0]
    for layer in range(3):
        view = BlockView(layer, 0, tokens, hidden)
        hidden = observe(subject.runner, subject.block(layer), subject.arch, view, subject.cache())
    model = load_model(packed, torch.float32, fake=not fake)
    expected = model.base_model(input_ids=tokens[None], use_cache=False, output_hidden_states=True).hidden_states
    torch.testing.assert_close(view.before, expected[2][0], atol=2e-2, rtol=2e-2)
