"""The refinement beside the straightforward method."""

from __future__ import annotations

import json

import pytest

from dfrot.bench.refinement.run import compare_refinement

# one draw of 64 rows; the largest |x| of a row moves the error, most for heavy tails and for one fixed direction
TOLERANCE = 0.016


def test_bench_reports_both_methods() -> None:
    result = compare_refinement(64, 2000, 12)
    assert result["straightforward"]["curve"][0][2] == pytest.approx(result["refine"]["curve"][0][2], rel=1e-5)
    assert len(result["straightforward"]["curve"]) == 13
    seconds = [point[1] for point in result["straightforward"]["curve"]]
    assert seconds == sorted(seconds)
    values = [point[2] for point in result["refine"]["curve"]]
    assert values == sorted(values, reverse=True)
    assert {level["round"] for level in result["levels"]} >= {1, 2, 5, 10}
    assert result["refine"]["peak_bytes"] >= 0
    json.dumps(result)
