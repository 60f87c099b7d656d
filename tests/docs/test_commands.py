"""Every `dfq ...` line of the docs is one that the command line understands: commands and options exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any

import click
import pytest

from dfrot_cli.main import main

PROMPT = re.compile(r"^\$ (.*)$")
SHELL = ("", "sh", "bash", "console")


def command_lines(block: str) -> Iterator[str]:
    """The commands of a block: lines behind `$ ` where there are any, else lines that start with dfq; `\\` joins."""
    lines = block.replace("\\\n", " ").splitlines()
    prompts = [match[1] for line in lines if (match := PROMPT.match(line))]
    for line in prompts or lines:
        code = line.split("  #")[0].strip()
        if match := re.match(r"(?:\S+=\S+ )*(?:torchrun .*--no-python )?(dfq .*)$", code):
            yield match[1]


def words_of(line: str) -> list[str]:
    """Arguments of a command line, without what the shell does with its output."""
    return shlex.split(re.split(r" [|>&]", line)[0])[1:]


def resolve(words: list[str]) -> tuple[click.Command, click.Context, list[str]]:
    """The command that `words` name, with what is left for it."""
    command: click.Command = main
    context = click.Context(main, info_name="dfq")
    while isinstance(command, click.Group):
        if command.name == "outliers" and words and words[0] not in (*command.list_commands(context), "-h", "--help"):
            words = ["measure", *words]
        if not words or words[0].startswith("-"):
            break
        below = command.get_command(context, words[0])
        if below is None:
            raise click.UsageError(f"no command {words[0]}")
        command, words = below, words[1:]
        context = click.Context(command, info_name=command.name, parent=context)
    return command, context, words


def check(line: str) -> None:
    """Raises UsageError where the command line would. Values are checked against choices and ranges, never opened."""
    command, context, words = resolve(words_of(line))
    values, _, _ = command.make_parser(context).parse_args(list(words))
    if {"-h", "--help", "--version", "--list-rows"} & set(words):
        return
    for parameter in command.params:
        value = values.get(parameter.name or "")
        if value is None:
            if parameter.required and not isinstance(command, click.Group):
                raise click.UsageError(f"{line}: {parameter.name} is missing")
        elif isinstance(parameter.type, (click.Choice, click.types.IntParamType, click.types.FloatParamType)):
            for item in value if isinstance(value, list) else [value]:
                if isinstance(item, str):
                    parameter.type.convert(item, parameter, context)


def test_every_command_of_the_pages_parses(pages: list[Any]) -> None:
    count, wrong = 0, []
    for page in pages:
        for block in page.blocks:
            if block.language not in SHELL or page.name == "CONTRIBUTING.md":  # which tests/contributing runs
                continue
            for line in command_lines(block.text):
                count += 1
                try:
                    check(line)
                except (click.ClickException, ValueError) as error:
                    wrong.append(f"{page.name}:{block.line}: {line}: {error}")
    assert not wrong
    assert count >= 30


def test_options_named_in_prose_exist(pages: list[Any]) -> None:
    """`dfq quantize --keep` in running text: the command and its options exist; values may be left out."""
    wrong = []
    for page in pages:
        for span in re.findall(r"`(dfq [^`\n]+)`", page.prose):
            words = re.sub(r"\.\.\.|[\[\]]", " ", span.split(" |")[0]).split()[1:]
            try:
                command, _, rest = resolve(words)
            except click.ClickException as error:
                wrong.append(f"{page.name}: {span}: {error}")
                continue
            known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
            options = {word.split("=")[0] for word in rest if word.startswith("--")} - {"--help", "--version"}
            wrong += [f"{page.name}: {span}: no option {option}" for option in sorted(options - known)]
    assert not wrong


@pytest.mark.parametrize(
    "line", ["dfq rotat --model m", "dfq rotate --out o", "dfq rotate --model m --out o --gama 1", "dfq eval speed --x"]
)
def test_a_wrong_line_is_noticed(line: str) -> None:
    with pytest.raises(click.ClickException):
        check(line)


def test_a_wrong_choice_is_noticed() -> None:
    with pytest.raises(click.ClickException):
        check("dfq rotate --model m --out o --method dfrott")
