"""dfq outliers."""

from dfrot_cli.commands.outliers.measure import command as command
