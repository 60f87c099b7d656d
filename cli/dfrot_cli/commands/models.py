"""dfq models: the alias table."""

from __future__ import annotations

from dfrot_cli import show
from dfrot_cli.grouped_help import dfq_command
from dfrot_cli.options import Common, common


@dfq_command("models")
@common
def command(common: Common) -> None:
    """List the aliases that --model understands, and which of them lie complete in the local hub cache."""
    from dfrot.hub import REFERENCE, REFERENCE_VLM, known_aliases, reference_vlm_folder, resolve_model

    vlm = reference_vlm_folder()  # put together on first use, which this is not
    rows = [{"alias": REFERENCE, "hub_id": None, "folder": str(resolve_model(REFERENCE))}]
    rows += [{"alias": REFERENCE_VLM, "hub_id": None, "folder": str(vlm) if vlm.is_dir() else None}]
    rows += [
        {"alias": row.alias, "hub_id": row.hub_id, "folder": None if row.folder is None else str(row.folder)}
        for row in known_aliases()
    ]
    if common.json:
        show.as_json(rows)
        return
    columns = ("alias", "hub id", "on this machine")
    show.table("", columns, [(row["alias"], row["hub_id"] or "(ships with dfq)", row["folder"]) for row in rows])
