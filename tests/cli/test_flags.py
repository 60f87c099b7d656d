"""Messages of the library in the words of the command line."""

from __future__ import annotations

from typing import Any

import click
import pytest

from dfrot_cli.flags import with_flags
from dfrot_cli.main import main


def command(*names: str) -> click.Command:
    found: Any = main
    for name in names:
        found = found.get_command(click.Context(found), name)
    return found  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("names", "message", "shown"),
    [
        (("rotate",), "`seqlen` 10: too short", "--seqlen 10: too short"),
        (("rotate",), "take `method=hadamard`", "take --method hadamard"),
        (("rotate",), 'take `method="hadamard"`', "take --method hadamard"),
        (("rotate",), "set `online=False`", "set --no-online"),
        (("rotate",), "set `a_sym=False`", "set --a-asym"),
        (("quantize",), "set `fake=True`", "set --fake"),
        (("draft", "eval"), "`prompts` 0", "--count 0"),
        (("draft", "train"), "`decay` 2: `keep` 3", "--loss-decay 2: --keep-visual 3"),
        (("outliers", "fix"), "give `fixes`", "give --fix"),
        (("inspect",), "give `path`", "give PATH"),
        (("rotate",), "`lm_head` and `MassiveRule.parse`", "`lm_head` and `MassiveRule.parse`"),
    ],
)
def test_settings_become_options_of_the_command(names: tuple[str, ...], message: str, shown: str) -> None:
    assert with_flags(message, command(*names)) == shown


def test_settings_of_earlier_stages_become_their_options() -> None:
    message = "rotate with `online=False`, or quantize with `keep=q_proj`; `keep` and `lm_head` stay"
    shown = "rotate with --no-online, or quantize with --keep q_proj; `keep` and `lm_head` stay"
    assert with_flags(message, command("export"), lambda: (command("rotate"), command("quantize"))) == shown


def test_without_a_command_the_message_stays() -> None:
    assert with_flags("`seqlen` 3", None) == "`seqlen` 3"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("rotate", "--model", "x", "--out", "y", "--rounds", "-1"), "Error: --rounds -1: must be at least 0"),
        (
            ("generate", "--model", "x", "--prompt", "y", "--threads", "100000"),
            "Error: --threads 100000: must be between 0 and 1024",
        ),
        (
            ("rotate", "--model", "x", "--out", "y", "--processes", "5000"),
            "Error: --processes 5000: must be between 1 and 1024",
        ),
        (
            ("rotate", "--model", "x", "--out", "y", "--gamma", "much"),
            "Error: --gamma 'much': must be auto or a number",
        ),
        (
            ("outliers", "fix", "x", "--out", "y", "--eval-seqlen", "1", "--search"),
            "Error: --eval-seqlen 1: must be at least 2",
        ),
        (
            ("draft", "train", "--model", "x", "--out", "y", "--prompt", "99", "--seqlen", "64"),
            "Error: --prompt 99: must be shorter than --seqlen 64",
        ),
        (("draft", "eval", "--model", "x", "--draft", "y", "--count", "0"), "Error: --count 0: must be at least 1"),
        (("bench", "kernels", "--rows", "4,0"), "Error: --rows 0: must be at least 1"),
    ],
)
def test_a_value_out_of_range_is_one_line(dfq: Any, arguments: tuple[str, ...], message: str) -> None:
    ran = dfq(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == message + "\n"
