"""dfq publish: a checked folder with a model card, on the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dfrot.publish.settings import PublishSettings
from dfrot_cli import show
from dfrot_cli.grouped_help import dfq_command
from dfrot_cli.options import Common, common, file_option
from dfrot_cli.plan import plan
from dfrot_cli.setting_options import options_of, settings_from


@dfq_command("publish")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@options_of(PublishSettings)
@click.option("--dry-run", is_flag=True, help="Check, and with --out write the folder that would go; send nothing.")
@file_option("With --dry-run: the folder that shows what would go.", metavar="PATH")
@common
def command(folder: Path, dry_run: bool, out: Path | None, common: Common, **options: Any) -> None:
    """Check a packed checkpoint, an export or a draft, write its model card and put it on the hub.

    A README.md in DIR is used as it is. HF_TOKEN, or `hf auth login`, gives access. The command may be given again:
    what has arrived is not sent twice.
    """
    common.prepare()
    from dfrot.publish.run import publish

    settings = settings_from(PublishSettings, options)
    if common.plan:
        plan("publish", {"folder": folder}, settings, out, common)
        return
    with show.progress() as progress:
        result = publish(folder, settings, out, dry_run=dry_run, progress=progress, overwrite=common.overwrite)
    if common.json:
        show.as_json(result)
        return
    _show(result, out, dry_run)


def _show(result: dict[str, Any], out: Path | None, dry_run: bool) -> None:
    for finding in result["findings"]:
        show.note(f"{'FAILED' if finding['blocks'] else 'note'} ({finding['check']}): {finding['line']}")
    failed = sum(finding["blocks"] for finding in result["findings"])
    size = show.size(sum(result["files"].values()))
    names = ", ".join(result["files"])
    show.line(f"{result['repository']}: {result['format']} of {result['base_model']}, licence {result['license']}")
    show.line(f"{len(result['files'])} files, {size}: {names}")
    if not dry_run:
        show.line(f"commit {result['commit']}: {result['commit_url']}")
        return
    show.line(f"{failed} failed checks" if failed else "every check passed")
    if out is not None:
        show.line(f"wrote {out}; nothing was sent")
