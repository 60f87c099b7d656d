"""The `dfq` command: lazily imported subcommands, one line per expected error, exit codes scripts can rely on."""

from __future__ import annotations

import importlib
from typing import Any, NoReturn

import click

COMMANDS = {
    "run": "Run a recipe: a YAML file with every stage and what should come out.",
    "rotate": "Rotate a checkpoint; its function stays the same.",
    "calibrate": "Collect what quantize needs, block by block.",
    "quantize": "Quantize a checkpoint to packed integers.",
    "tune": "Fit scales and norm gains of a packed checkpoint end to end.",
    "eval": "Measure checkpoints (dfq eval ppl, kl, tasks, speed).",
    "export": "Write a checkpoint for vLLM, llama.cpp, transformers, ...",
    "inspect": "Say what a checkpoint is and who can load it.",
    "draft": "Train a small model that guesses ahead; decode with it, losslessly.",
    "outliers": "Find outliers, explain them, remove them.",
    "generate": "Generate text with a checkpoint, as it comes.",
    "serve": "Serve a checkpoint over HTTP, OpenAI-compatible.",
    "report": "Collect results of several runs into one table.",
    "compare": "Run every method on one model, print one table.",
    "models": "List the model aliases.",
    "doctor": "Show which kernel serves each operator, and why.",
    "bench": "Measure dfq itself (dfq bench rotate).",
}

INTERRUPTED = 130  # 128 + SIGINT, what shells expect


class Commands(click.Group):
    """A group that knows its commands' names and help lines without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"dfrot_cli.commands.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            _fail("interrupted; the same command continues where it stopped", INTERRUPTED)
        except Exception as error:
            # imported only on failure: `dfq --help` must not pay for the library
            from dfrot.errors import DfqError

            if not isinstance(error, DfqError):
                raise
            _fail(str(error), error.exit_code)


def _fail(message: str, exit_code: int) -> NoReturn:
    """One line on stderr, no traceback."""
    from dfrot_cli import show

    show.note("Error: " + " ".join(message.split()))
    raise click.exceptions.Exit(exit_code)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="dfq", prog_name="dfq")
def main() -> None:
    """Take an LLM checkpoint to 4 bits (weights, activations, KV cache) with refined rotations."""
