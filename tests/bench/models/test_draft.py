"""`dfq bench draft`: complete, derived as it says, on the smallest shape."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from dfrot.bench.models.draft import bench_draft
from dfrot.errors import InputError
from dfrot.generation.speculation.tree import TreeShape
from dfrot_cli.main import main

COMMAND = ["bench", "draft", "--shape", "tiny", "--rows", "1,3", "--repeats", "2", "--prompt", "16"]


def test_the_command_measures_and_plots(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, [*COMMAND, "--out", str(tmp_path / "out"), "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert json.loads((tmp_path / "out" / "draft.json").read_text()) == result
    assert (tmp_path / "out" / "draft.png").stat().st_size > 1000
    assert set(result["verify"]) == set(result["draft"]["w4"]) == {"1", "3"}
    assert min(result["step"], *result["verify"].values(), *result["draft"]["bfloat16"].values()) > 0
    table = CliRunner().invoke(main, [*COMMAND, "--tree", "2,2,4"], catch_exceptions=False)
    assert "pays from tau" in table.output
    assert "tree 2,2,4" in table.output


def test_a_tree_pays_where_its_round_is_as_long_as_what_it_gives() -> None:
    result = bench_draft("tiny", rows=[2], drafts=["w4"], trees=[TreeShape(2, 2, 4)], prompt=16, repeats=1)
    tree = result["trees"]["tree 2,2,4"]
    assert tree["break_even"]["w4"] * result["step"] == pytest.approx(tree["verify"] + tree["draft"]["w4"])
    with pytest.raises(InputError, match="chain"):
        bench_draft("tiny", trees=[TreeShape(3)])


@pytest.mark.parametrize("bad", [("--shape", "huge"), ("--drafts", "w5"), ("--prompt", "99999")])
def test_bad_input_is_one_line(bad: tuple[str, str]) -> None:
    done = CliRunner().invoke(main, [*COMMAND, *bad])
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1
