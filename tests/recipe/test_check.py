"""Expected metrics: inside and outside their tolerance."""

from __future__ import annotations

from typing import Any

import pytest

from dfrot.errors import GateError, InputError
from dfrot.recipe import check
from dfrot.recipe.recipe import load


def test_expectations_pass_inside_their_tolerance_and_fail_outside(write: Any) -> None:
    expected = load(write()).expect
    check.require(check.compare(expected, {"packed.perplexity": 30.59}))
    with pytest.raises(GateError, match=r"packed.perplexity: measured 30.7.*\+2.33%"):
        check.require(check.compare(expected, {"packed.perplexity": 30.7}))
    with pytest.raises(InputError, match="expects nothing"):
        check.require([])
