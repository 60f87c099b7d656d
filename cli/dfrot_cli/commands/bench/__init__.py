"""dfq bench."""

from dfrot_cli.commands.bench.rotate import command as command
