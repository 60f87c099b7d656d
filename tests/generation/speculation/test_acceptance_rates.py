"""Acceptance rates: read from records, and the acceptance length that they promise."""

from __future__ import annotations

import pytest

from dfrot.generation.speculation.acceptance_rates import AcceptanceRates, expected_tau, node_probabilities
from dfrot.generation.speculation.tree import TreeShape


def test_probabilities_of_a_tree_by_hand() -> None:
    """A fixed tree by hand: two children of the root, one child of each."""
    rates = [[0.6, 0.3], [0.5, 0.2]]
    kept = node_probabilities(TreeShape(2, 2, 5), rates)
    assert kept == pytest.approx([0.6, 0.3, 0.6 * 0.5, 0.3 * 0.5])
    assert sum(node_probabilities(TreeShape(2, 2, 100), rates)) == pytest.approx(0.9 + 0.9 * 0.7)
    assert node_probabilities(TreeShape(3), rates) == pytest.approx([0.6, 0.3, 0.15])
    assert expected_tau(TreeShape(3, 4, 8), rates) >= expected_tau(TreeShape(3), rates), "a tree holds its chain"
    assert node_probabilities(TreeShape(3, 4, 8), []) == []


def test_old_and_malformed_records() -> None:
    history = [{"simulated_tau": 1.2, "held_out_agreement": [0.2]}, {"simulated_tau": 1.5, "held_out_agreement": [0.5]}]
    old = AcceptanceRates.of_history({"history": history})
    assert old == AcceptanceRates(((0.5,),))
    assert not old.ranked
    history[1]["held_out_ranks"], history[1]["held_out_mass"] = [[0.5, 0.2]], [[0.4, 0.1]]
    new = AcceptanceRates.of_history({"history": history})
    assert new is not None
    assert new.ranked
    assert new.of(True) == ((0.5, 0.2),)
    assert new.of(False) == ((0.4, 0.1),)
    quantized = {"held_out_ranks": [[0.3, 0.1]], "held_out_mass": [[0.2, 0.1]]}
    assert AcceptanceRates.of_history({"history": history, "quantized": quantized}) == AcceptanceRates(
        ((0.3, 0.1),), ((0.2, 0.1),)
    )
    for bad in (
        {},
        {"history": []},
        {"history": 3},
        [],
        {"history": [{"simulated_tau": 1, "held_out_agreement": [7]}]},
    ):
        assert AcceptanceRates.of_history(bad) is None
