"""Options come from the settings: no default, range, choice or help text is written a second time."""

from __future__ import annotations

import ast
import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from dfrot.quant.scheme import QuantScheme
from dfrot.settings import default_of, settings_of
from dfrot_cli.main import COMMANDS, main
from dfrot_cli.options import Common
from dfrot_cli.setting_options import SettingOption, help_of

CLI = Path(__file__).resolve().parents[2] / "cli" / "dfrot_cli"
BY_MODE = {("bench rotate", "rows"), ("bench rotate", "rounds")}  # whose default depends on --figure


def leaves(name: str = "", command: click.Command = main) -> list[tuple[str, click.Command]]:
    """Every command that is no group, by its full name."""
    if not isinstance(command, click.Group):
        return [(name, command)]
    context = click.Context(command)
    below = [(inner, command.get_command(context, inner)) for inner in command.list_commands(context)]
    return [leaf for inner, found in below if found for leaf in leaves(f"{name} {inner}".strip(), found)]


LEAVES = leaves()


def setting_options() -> list[Any]:
    """Every option of every command that stands for a field of a settings class."""
    return [
        pytest.param(name, option, id=f"{name} {option.opts[0]}")
        for name, command in LEAVES
        for option in command.params
        if isinstance(option, SettingOption)
    ]


def value_left_out(command: click.Command, option: click.Parameter) -> Any:
    """What the command function gets where the option is left out."""
    context = click.Context(command, info_name="dfq")
    option.handle_parse_result(context, {}, [])
    return context.params[str(option.name)]


@pytest.mark.parametrize(("name", "option"), setting_options())
def test_the_default_is_the_fields(name: str, option: SettingOption) -> None:
    command = dict(LEAVES)[name]
    expected = default_of(option.owner, option.field)
    if (name, option.field) in BY_MODE or expected is dataclasses.MISSING:
        return
    got = value_left_out(command, option)
    if isinstance(expected, QuantScheme):
        assert got == expected
    elif expected in (None, "", ()):
        assert got in (None, "", ())
    else:
        assert got == expected
        assert type(got) is type(expected)


@pytest.mark.parametrize(("name", "option"), setting_options())
def test_range_choices_and_help_are_the_fields(name: str, option: SettingOption) -> None:
    known = settings_of(option.owner)[option.field]
    assert option.help
    assert option.help.startswith(help_of(option.owner, option.field))
    if known.choices and not known.listed:
        assert isinstance(option.type, click.Choice)
        assert tuple(option.type.choices) == known.choices
    if isinstance(option.type, (click.IntRange, click.FloatRange)):
        assert option.type.min == (known.above if known.minimum is None else known.minimum)
        assert option.type.max in (None, known.below if known.maximum is None else known.maximum)


def test_the_seed_is_the_same_everywhere() -> None:
    """--seed is an option of every command; the settings that it goes to have its default."""
    owners = {option.owner for _, command in LEAVES for option in command.params if isinstance(option, SettingOption)}
    for owner in owners:
        if "seed" in settings_of(owner):
            assert settings_of(owner)["seed"] == settings_of(Common)["seed"]
            assert default_of(owner, "seed") == default_of(Common, "seed")


@pytest.mark.parametrize(("name", "command"), LEAVES)
def test_every_option_explains_itself(name: str, command: click.Command) -> None:
    assert command.help
    for param in command.params:
        if isinstance(param, click.Option):
            assert param.help, f"dfq {name} {param.opts[0]} has no help"
            assert param.help.rstrip().endswith("."), f"dfq {name} {param.opts[0]}: {param.help}"
            assert "`" not in param.help, f"dfq {name} {param.opts[0]} names a field, not an option: {param.help}"


def names_of_settings() -> set[str]:
    """The fields of all settings that have an option somewhere, and the parameters that stand for them."""
    options = [option for _, command in LEAVES for option in command.params if isinstance(option, SettingOption)]
    return {str(option.name) for option in options} | {option.field for option in options}


def test_no_command_file_writes_a_default_or_a_range() -> None:
    """`click.option` is called by hand only for inputs, outputs and switches of the command line itself."""
    names = names_of_settings()
    for path in sorted(CLI.rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(call, ast.Call) or ast.unparse(call.func) not in ("click.option", "click.Option"):
                continue
            flags = [item.value for item in call.args if isinstance(item, ast.Constant)]
            params = {str(flag).split("/")[0].lstrip("-").replace("-", "_") for flag in flags}
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            written = "default" in given or "Range" in given.get("type", "") or "Choice" in given.get("type", "")
            assert not (params & names and written), f"{path.name}: {flags} is a setting; use options_of"


def test_settings_of_a_command_are_made_from_options_alone() -> None:
    """No command file gives a settings class a number or a text of its own."""
    for path in sorted((CLI / "commands").rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "settings_from":
                literals = [keyword.arg for keyword in call.keywords if isinstance(keyword.value, ast.Constant)]
                assert not literals, f"{path.name}: {literals}"


@pytest.mark.parametrize(
    "name", ["rotate", "quantize", "draft train", "outliers fix", "generate", "bench kernels", "serve"]
)
def test_help_of_a_command_needs_no_torch(name: str) -> None:
    code = (
        "import sys; from dfrot_cli.main import main; "
        f"main({[*name.split(), '--help']!r}, standalone_mode=False); print(*sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/", check=True)
    assert not {"torch", "transformers", "numpy", "scipy"} & set(ran.stdout.split())


def test_groups_list_their_commands() -> None:
    for name in ("bench", "draft", "eval", "outliers"):
        group = main.get_command(click.Context(main), name)
        assert isinstance(group, click.Group)
        context = click.Context(group)
        folder = {path.stem for path in (CLI / "commands" / name).glob("*.py")} - {"__init__", "options"}
        assert set(group.list_commands(context)) == folder
    folders = {path.stem for path in (CLI / "commands").iterdir()} - {"__init__", "__pycache__"}
    assert set(COMMANDS) == folders
