"""dfq export: a checkpoint in the format of another engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dfrot_cli import export_show, show
from dfrot_cli.options import Common, common
from dfrot_cli.plan import plan


@click.command("export")
@click.option("--model", metavar="M", help="A checkpoint of dfq quantize, or a 16-bit one (gguf).")
@click.option("--to", metavar="FORMAT", help="compressed-tensors, gguf or gptq.")
@click.option("--scheme", metavar="S", help="Write the same weights under this scheme, e.g. without activation bits.")
@click.option("--dtype", metavar="T", help="gguf: what stays in 16 bits, bf16, f16 or f32. Default: as in the source.")
@click.option(
    "--online-r4", is_flag=True, help="compressed-tensors: write R4 as an online transform, which only vLLM reads."
)
@click.option("--list", "listed", is_flag=True, help="Print which scheme each format can hold, and what instead.")
@click.option(
    "--check",
    is_flag=True,
    help="Export --model to every format, load each with its engine, compare; a 16-bit model under every scheme.",
)
@click.option("--seqlen", type=click.IntRange(2), default=256, show_default=True, help="Window length of --check.")
@click.option("--windows", type=click.IntRange(1), default=4, show_default=True, help="Windows of --check.")
@click.option("--dataset", metavar="D", help="Text of --check. Default: as for dfq eval.")
@click.option("--out", type=click.Path(path_type=Path), metavar="PATH", help="Folder of the result.")
@common
def command(
    model: str | None,
    to: str | None,
    scheme: str | None,
    out: Path | None,
    listed: bool,
    check: bool,
    seqlen: int,
    windows: int,
    dataset: str | None,
    common: Common,
    **options: Any,
) -> None:
    """Write a checkpoint for vLLM, SGLang, transformers, llama.cpp or GPTQModel, losslessly or not at all.

    What a format cannot say (online rotations, asymmetric activations, KV bits, odd groups) is refused with the
    scheme that would work. A model for export is rotated with `dfq rotate --no-online`.
    """
    common.prepare()
    from dfrot.errors import InputError

    if listed:
        export_show.matrix(common.json)
        return
    if model is None or out is None or (to is None and not check):
        raise InputError("give --model, --to and --out; or --list for what is possible")
    from dfrot.hub import default_dataset, resolve_model
    from dfrot.quant.scheme import QuantScheme

    folder = resolve_model(model)
    if common.plan:
        plan("export", {"model": folder}, {"to": to, "scheme": scheme, **options}, out, common)
        return
    if check:
        from dfrot.export.check import check_all

        with show.progress() as progress:
            text = dataset or default_dataset(model, folder)
            report = check_all(folder, out, text, seqlen, windows, progress=progress, overwrite=common.overwrite)
        show.as_json(report) if common.json else export_show.checked(report, out)
        return
    from dfrot.export.run import export

    wanted = QuantScheme.parse(scheme) if scheme is not None else None
    with show.progress() as progress:
        evidence = export(folder, str(to), out, wanted, progress=progress, **options, **common.stage())
    show.as_json({"out": str(out), **evidence}) if common.json else export_show.written(evidence, out)
