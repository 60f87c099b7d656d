"""The `dfq` command: lazily imported subcommands, one line per expected error, exit codes scripts can rely on."""

from __future__ import annotations

import errno
from typing import Any, NoReturn

import click

from dfrot_cli.flags import COMMAND, with_flags
from dfrot_cli.lazy_group import LazyGroup

COMMANDS = {
    "run": "Run a recipe: a YAML file with every stage and the expected results.",
    "rotate": "Rotate a checkpoint; its function stays the same.",
    "calibrate": "Collect the statistics that quantize needs.",
    "quantize": "Quantize a checkpoint to packed integers.",
    "tune": "Fit scales and norm gains of a packed checkpoint end to end.",
    "eval": "Measure checkpoints (dfq eval ppl, kl, sensitivity, tasks, speed).",
    "export": "Write a checkpoint for vLLM, llama.cpp, transformers, ...",
    "import": "Write a quantized model of another tool as a 16-bit checkpoint.",
    "publish": "Put a checkpoint, an export or a draft on the hub.",
    "inspect": "Show what a checkpoint is and what can load it.",
    "draft": "Train and measure draft models for speculative decoding.",
    "outliers": "Find outliers, explain them, remove them.",
    "generate": "Generate text with a checkpoint, as a stream.",
    "serve": "Serve a checkpoint over HTTP, OpenAI-compatible.",
    "report": "Collect results of several runs in one table.",
    "compare": "Compare all methods on one model in one table.",
    "models": "List the model aliases.",
    "doctor": "Show which kernel implements each operator, and why.",
    "bench": "Measure dfq itself (dfq bench rotate, kernels, models, generate, serve, evaluate, draft).",
}

OF_THE_MACHINE = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.EIO, errno.ESTALE),
)
"""What a file system answers where the user, and not dfq, can mend it."""
INTERRUPTED = 130  # 128 + SIGINT, what shells expect


class Main(LazyGroup):
    """The group of all commands, which turns expected errors into one line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; errors become one line and an exit code."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            _fail("interrupted; run the same command again to continue", INTERRUPTED)
        except Exception as error:
            # imported only on failure: `dfq --help` must not pay for the library
            from dfrot.errors import DfqError

            if isinstance(error, OSError) and error.errno in OF_THE_MACHINE and error.filename is not None:
                _fail(f"{error.filename}: {error.strerror}; choose another place, or mend this one", 2)
            if not isinstance(error, DfqError):
                raise
            _fail(with_flags(str(error), ctx.meta.get(COMMAND), lambda: self._earlier(ctx)), error.exit_code)

    def _earlier(self, ctx: click.Context) -> list[click.Command]:
        """The commands that make what others read."""
        return [command for name in ("rotate", "quantize") if (command := self.get_command(ctx, name)) is not None]


def _fail(message: str, exit_code: int) -> NoReturn:
    """One line on stderr, no traceback."""
    from dfrot_cli import show

    show.note("Error: " + " ".join(message.split()))
    raise click.exceptions.Exit(exit_code)


@click.group(
    cls=Main,
    package="dfrot_cli.commands",
    members=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="dfq", prog_name="dfq")
def main() -> None:
    """Take an LLM checkpoint to 4 bits (weights, activations, KV cache) with refined rotations.

    The usual order: rotate, calibrate, quantize, eval, then serve or export. `dfq COMMAND --help` explains each."""
