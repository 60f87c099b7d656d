"""dfq import: a quantized model of another tool as an ordinary 16-bit checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dfrot.stages.imports.settings import ImportSettings
from dfrot_cli import show
from dfrot_cli.grouped_help import dfq_command
from dfrot_cli.models import model_folder
from dfrot_cli.options import Common, common, out_option, path_option
from dfrot_cli.plan import plan
from dfrot_cli.setting_options import options_of, settings_from


@dfq_command("import")
@click.argument("model", metavar="MODEL")
@options_of(ImportSettings)
@path_option("--merge-adapter", metavar="DIR", text="Merge the LoRA adapter of this folder into the weights.")
@out_option("Folder of the 16-bit checkpoint.")
@common
def command(model: str, merge_adapter: Path | None, out: Path, common: Common, **options: Any) -> None:
    """Write a quantized model of another tool as an ordinary 16-bit checkpoint.

    MODEL is a folder (FP8, compressed-tensors, GPTQ, AWQ, MXFP4), a .gguf file, or what --model takes. The other
    commands read all of these as they are; import is for other programs, and for models that are read many times.
    """
    common.prepare()
    from dfrot.stages.imports import run as imports

    source = model_folder(model)
    settings = settings_from(ImportSettings, options)
    if common.plan:
        plan("import", {"model": source, **imports.plan(source, settings, merge_adapter)}, settings, out, common)
        return
    with show.progress() as progress:
        more = {"merge_adapter": merge_adapter, "progress": progress, **common.stage()}
        record = imports.import_model(source, out, settings, **more)
    if common.json:
        show.as_json({"out": str(out), **record})
        return
    rows = {
        "format": record["source"]["format"],
        "dtype": record["source"]["dtype"],
        "size": show.size(sum(file["bytes"] for file in record["files"].values())),
    }
    left_out = record["source"]["left_out"]
    show.facts(str(out), rows | ({"left out": "; ".join(left_out)} if left_out else {}))
