"""dfq generate and its old name dfq draft generate: one engine, one meaning of every option."""

from __future__ import annotations

from typing import Any

import pytest

NAMES = (("generate",), ("draft", "generate"))
KEYS = {
    "text",
    "tokens",
    "how",
    "finish",
    "prompt_tokens",
    "new_tokens",
    "tokens_per_second",
    "tau",
    "rounds",
    "choice",
}


@pytest.fixture
def write(dfq: Any, make: Any) -> Any:
    """write(name, *options) -> the result of `dfq NAME` on a small random model, as JSON."""
    model = make()

    def run(name: tuple[str, ...], *options: object) -> Any:
        ran = dfq(*name, "--model", model, "--prompt", "line 7", "--max-new-tokens", 40, "--json", *options)
        assert ran.code == 0, ran.err
        return ran.json

    return run


def test_both_names_give_the_same_text(write: Any) -> None:
    results = [write(name) for name in NAMES]
    assert set(results[0]) == set(results[1]) == KEYS
    for key in KEYS - {"tokens_per_second"}:
        assert results[0][key] == results[1][key]
    assert results[0]["new_tokens"] == len(results[0]["tokens"])


@pytest.mark.parametrize("name", NAMES)
def test_the_text_ends_before_the_stop_string(write: Any, name: tuple[str, ...]) -> None:
    text = write(name)["text"]
    stop = next(character for character in text[5:] if character.isascii() and character.isprintable())
    stopped = write(name, "--stop", stop)
    assert stopped["text"] == text[: text.index(stop)]
    assert stopped["finish"] == "stop"


def test_the_old_name_announces_its_end(dfq: Any, make: Any) -> None:
    model = make()
    arguments = ("--model", model, "--prompt", "x", "--max-new-tokens", 2)
    old, new = dfq("draft", "generate", *arguments), dfq("generate", *arguments)
    assert old.out == new.out
    assert old.err.splitlines()[-1].startswith("note: dfq draft generate is deprecated")
    assert "deprecated" not in new.err


def test_a_system_message_needs_a_conversation(dfq: Any, make: Any) -> None:
    ran = dfq("generate", "--model", make(), "--prompt", "x", "--system", "be brief")
    assert ran.code == 2
    assert ran.err == "Error: --system is a message of a conversation: add --chat\n"


@pytest.mark.parametrize(
    "option", [("--prompt",), ("--prompt", "x", "--stop"), ("--prompt", "x", "--chat", "--system")]
)
def test_arguments_that_are_no_unicode(dfq: Any, make: Any, option: tuple[str, ...]) -> None:
    model = make()
    (model / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    argument = b"caf\xe9".decode("utf-8", "surrogateescape")  # as Python gives an argument that is no UTF-8
    ran = dfq("generate", "--model", model, *option, argument)
    assert ran.code == 2
    assert "half a surrogate pair" in ran.err
    assert len(ran.err.splitlines()) == 1


def test_stdin_that_is_no_utf8(dfq: Any, make: Any) -> None:
    ran = dfq("generate", "--model", make(), "--prompt", "-", stdin=b"caf\xe9")
    assert (ran.code, ran.err) == (2, "Error: stdin: not UTF-8 at byte 3; convert the prompt to UTF-8\n")
