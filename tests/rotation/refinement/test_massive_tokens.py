"""Rules for massive tokens: free of scale, and of width where they claim it."""

from __future__ import annotations

import math

import pytest
import torch

from dfrot.bench.refinement.synthetic_rows import MASSIVE_PROFILES, common_rows, massive_profile_rows, massive_rows
from dfrot.errors import InputError
from dfrot.rotation.refinement.massive_rule import PUBLISHED_RATIO, RULES, MassiveRule
from dfrot.rotation.refinement.massive_tokens import massive_mask


def test_default_threshold_is_the_published_one_in_the_limit_of_pure_spikes() -> None:
    assert MassiveRule().threshold == pytest.approx(1.0 - PUBLISHED_RATIO**2)
    width = 4096
    for outside, expected in ((0.016, True), (0.019, False)):
        row = torch.full((1, width), math.sqrt(outside / (width - 1)))
        row[0, 9] = math.sqrt(1.0 - outside)
        for name in ("energy", "quantization"):
            assert bool(massive_mask(row, MassiveRule.parse(name))) is expected, name
        scaled = row * 64.0  # the literal rule wants rows of norm sqrt(d)
        assert bool(massive_mask(scaled, MassiveRule.parse("published"))) is expected


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_scale_does_not_matter(name: str, scale: float) -> None:
    rows = torch.cat([massive_rows(6, 512), common_rows("laplace", 50, 512, 0)])
    rule = MassiveRule.parse(name)
    assert torch.equal(massive_mask(rows * scale, rule), massive_mask(rows, rule))


@pytest.mark.parametrize("name", ["energy", "maxmedian"])
@pytest.mark.parametrize("width", [256, 1024, 4096])
def test_width_does_not_matter(name: str, width: int) -> None:
    rule = MassiveRule.parse(name)
    assert bool(massive_mask(massive_rows(8, width), rule).all())
    for profile in ("gaussian", "laplace", "channels"):
        assert not bool(massive_mask(common_rows(profile, 200, width, 1), rule).any())


def test_the_published_ratio_misfires_on_small_widths() -> None:
    """The reason for the default: at width 256, a quarter and more of ordinary tokens look massive to it."""
    rows = common_rows("gaussian", 500, 256, 0)
    assert float(massive_mask(rows, MassiveRule.parse("quantization")).float().mean()) > 0.25
    assert not bool(massive_mask(rows, MassiveRule.parse("energy")).any())


@pytest.mark.parametrize("kind", MASSIVE_PROFILES)
def test_every_spike_profile_of_the_table_is_massive(kind: str) -> None:
    assert bool(massive_mask(massive_profile_rows(*MASSIVE_PROFILES[kind], 20, 4096, 0), MassiveRule()).all())


def test_rows_of_zeros_are_not_massive() -> None:
    for name in RULES:
        assert not bool(massive_mask(torch.zeros(3, 64), MassiveRule.parse(name)).any())


@pytest.mark.parametrize("text", ["energi", "energy:2", "energy:x", "energy:-1", "quantization:nan", ""])
def test_bad_rules_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="massive rule"):
        MassiveRule.parse(text)


def test_thresholds_can_be_given() -> None:
    assert MassiveRule.parse("energy:0.9") == MassiveRule("energy", 0.9)
