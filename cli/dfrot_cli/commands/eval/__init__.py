"""dfq eval."""

from dfrot_cli.commands.eval.ppl import command as command
