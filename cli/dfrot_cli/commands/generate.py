"""dfq generate: text from a checkpoint, as a stream."""

from __future__ import annotations

from typing import Any

from dfrot_cli.generation import generate, generate_options
from dfrot_cli.grouped_help import dfq_command
from dfrot_cli.help_sections import GENERATE
from dfrot_cli.options import Common, common


@dfq_command("generate", GENERATE)
@generate_options
@common
def command(common: Common, **options: Any) -> None:
    """Generate text with any checkpoint that dfq loads: 16-bit, rotated or packed.

    A draft (dfq draft train) makes it faster and changes nothing: greedy text is the same, samples have the same
    distribution. Without --chain or --tree the tree shape is chosen from costs measured on this machine, and decoding
    is plain where drafting does not pay. For a server see dfq serve."""
    generate("generate", common, **options)
