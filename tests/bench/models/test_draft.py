"""`dfq bench draft`: complete, derived as it says, on the smallest shape."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from dfrot.bench.models.draft import bench_draft
from dfrot.bench.models.draft_costs import best_speedups, break_even_lengths
from dfrot.errors import InputError
from dfrot.generation.tree import TreeShape
from dfrot_cli.main import main

COMMAND = ["bench", "draft", "--shape", "tiny", "--rows", "1,3", "--repeats", "2", "--prompt", "16"]


def test_the_command_measures_and_plots(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, [*COMMAND, "--out", str(tmp_path / "out"), "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert json.loads((tmp_path / "out" / "draft.json").read_text()) == told
    assert (tmp_path / "out" / "draft.png").stat().st_size > 1000
    assert set(told["verify"]) == set(told["draft"]["w4"]) == {"1", "3"}
    assert min(told["step"], *told["verify"].values(), *told["draft"]["bfloat16"].values()) > 0
    table = CliRunner().invoke(main, [*COMMAND, "--tree", "2,2,4"], catch_exceptions=False)
    assert "pays from tau" in table.output
    assert "tree 2,2,4" in table.output


def test_a_tree_pays_where_its_round_is_as_long_as_what_it_gives() -> None:
    told = bench_draft("tiny", rows=[2], drafts=["w4"], trees=[TreeShape(2, 2, 4)], prompt=16, repeats=1)
    tree = told["trees"]["tree 2,2,4"]
    assert tree["break_even"]["w4"] * told["step"] == pytest.approx(tree["verify"] + tree["draft"]["w4"])
    with pytest.raises(InputError, match="chain"):
        bench_draft("tiny", trees=[TreeShape(3)])


def test_what_follows_from_costs() -> None:
    verify, draft = {1: 1.0, 2: 1.0, 4: 2.0}, {1: 0.5, 2: 1.0, 4: 2.0}
    assert break_even_lengths(1.0, verify, draft) == {1: 1.5, 2: 2.5, 4: 4.5}
    found = best_speedups(1.0, verify, draft)
    assert found["0.9"]["guesses"] == 1
    assert found["0.9"]["speedup"] == pytest.approx(1.9 / 1.5)
    free = best_speedups(1.0, dict.fromkeys((1, 2, 8), 1.0), dict.fromkeys((1, 2, 4), 0.0))
    assert free["0.5"]["guesses"] == 4


@pytest.mark.parametrize("bad", [("--shape", "huge"), ("--drafts", "w5"), ("--prompt", "99999")])
def test_bad_input_is_one_line(bad: tuple[str, str]) -> None:
    done = CliRunner().invoke(main, [*COMMAND, *bad])
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1
