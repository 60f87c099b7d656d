"""dfq export: a checkpoint in the format of another engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dfrot.export.settings import ExportCheckSettings, ExportForSettings, ExportSettings
from dfrot.quant.scheme import QuantScheme
from dfrot_cli import engine_check, export_show, show
from dfrot_cli.grouped_help import dfq_command
from dfrot_cli.help_sections import EXPORT
from dfrot_cli.models import model_folder
from dfrot_cli.options import Common, common, dataset_option, file_option
from dfrot_cli.plan import plan
from dfrot_cli.setting_options import options_of, settings_from


@dfq_command("export", EXPORT)
@click.argument("given", nargs=-1, metavar="[DIR] [ENGINE]...")
@click.option("--model", metavar="M", help="A checkpoint of dfq quantize, or a 16-bit one (gguf).")
@options_of(ExportSettings, more={"to": {"required": False}})
@options_of(ExportForSettings)
@click.option(
    "--list", "listed", is_flag=True, help="Show which scheme each format can hold, and the nearest to others."
)
@click.option(
    "--check",
    is_flag=True,
    help="Run ENGINEs (default: all that make engines set up) on DIR, an export or a checkpoint that is exported "
    "first, and say what each serves. With --model and --out: every scheme in every format, in this process.",
)
@options_of(ExportCheckSettings, skip=("dataset",))
@dataset_option(ExportCheckSettings)
@file_option("Folder of the result.", metavar="PATH")
@common
def command(
    given: tuple[str, ...],
    model: str | None,
    to: str | None,
    scheme: QuantScheme | None,
    out: Path | None,
    listed: bool,
    check: bool,
    dataset: str | None,
    common: Common,
    **options: Any,
) -> None:
    """Write a checkpoint for vLLM, SGLang, transformers, llama.cpp or GPTQModel, losslessly or not at all.

    What a format cannot express (online rotations, asymmetric activations, KV bits, odd groups) is refused, and the
    message names a scheme that works. Rotate a model for export with `dfq rotate --no-online`.
    """
    common.prepare()
    from dfrot.errors import InputError

    if listed:
        export_show.matrix(common.json)
        return
    model, engines = _model_and_engines(given, model, check)
    by_engines = check and bool(given)
    wanted = settings_from(ExportForSettings, options)
    if model is None or (out is None and not by_engines) or (to is None and wanted.engine is None and not check):
        raise InputError(
            "give `model`, `to` (or `engine`) and `out`; or `listed` for what is possible",
            field=("model", "to", "engine", "out", "listed"),
        )
    from dfrot.hub import default_dataset

    folder = model_folder(model)
    text = dataset or default_dataset(model, folder)
    measured = settings_from(ExportCheckSettings, options, dataset=text)
    if common.plan:
        plan("export", {"model": folder}, {"to": to, "scheme": scheme and scheme.name, **options}, out, common)
        return
    if by_engines:
        engine_check.run(folder, engines, measured, to, out, options, common)
        return
    assert out is not None
    if check:
        from dfrot.export.check import check_all

        with show.progress() as progress:
            windows = (measured.dataset, measured.seqlen, measured.windows)
            report = check_all(folder, out, *windows, progress=progress, overwrite=common.overwrite)
        show.as_json(report) if common.json else export_show.checked(report, out)
        return
    export_show.run(folder, to, scheme, out, wanted, options, common)


def _model_and_engines(given: tuple[str, ...], model: str | None, check: bool) -> tuple[str | None, tuple[str, ...]]:
    """The model, which may come first among the arguments, and the engines behind it. Raises InputError for others."""
    from dfrot.errors import InputError

    engines = given if model is not None else given[1:]
    if engines and not check:
        raise InputError(f"{engines[0]}: engines are named with `check` only", field="check")
    return (model if model is not None else next(iter(given), None)), engines
