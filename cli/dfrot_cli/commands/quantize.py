"""dfq quantize: a 16-bit (usually rotated) checkpoint in, packed integers out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from dfrot_cli import show
from dfrot_cli.options import Common, common, model_option, out_option, scheme_option
from dfrot_cli.plan import plan

FALLBACKS = 8  # lines about linears that could only be rounded; a mixture may have hundreds


@click.command("quantize")
@model_option
@click.option("--calibration", type=click.Path(path_type=Path), metavar="CAL", help="Result of dfq calibrate.")
@scheme_option
@click.option("--algorithm", type=click.Choice(["gptq", "rtn"]), default="gptq", show_default=True)
@click.option("--mse-clip/--no-mse-clip", default=True, show_default=True, help="Search weight clip ratios.")
@click.option("--act-order", is_flag=True, help="GPTQ: columns by falling activation energy.")
@click.option("--damping", type=float, default=0.01, show_default=True, help="GPTQ: share of the mean diagonal.")
@click.option("--keep", multiple=True, default=("lm_head",), show_default=True, help="Linears left in 16 bits.")
@click.option("--propagate/--no-propagate", default=True, show_default=True, help="Hessians of the quantized model.")
@click.option("--a-clip", metavar="C", help="Activation clip ratio, or auto: the calibration's best per tap.")
@click.option("--kv-clip", type=float, default=1.0, show_default=True, help="Clip ratio of keys and values.")
@click.option(
    "--compensate", type=float, help="GPTQ: activation error taken back, 0..1. Default: 0.5 if quantized, else 0."
)
@click.option("--sink-tokens", type=click.IntRange(0), default=0, show_default=True, help="Leading positions kept.")
@click.option("--fake", is_flag=True, help="Write the simulated model: dense weights on the integer grid.")
@out_option("Folder of the quantized checkpoint.")
@common
def command(
    model: str,
    calibration: Path | None,
    out: Path,
    scheme: str,
    a_clip: str | None,
    kv_clip: float,
    keep: tuple[str, ...],
    common: Common,
    **options: Any,
) -> None:
    """Quantize weights to packed integers; activations and KV cache are quantized while the result runs."""
    common.prepare()
    from dfrot.errors import InputError
    from dfrot.hub import resolve_model
    from dfrot.quant.scheme import QuantScheme
    from dfrot.stages.quantize.run import quantize
    from dfrot.stages.quantize.settings import QuantizeSettings

    try:
        clip: Any = a_clip if a_clip in (None, "auto") else float(str(a_clip))
    except ValueError:
        raise InputError(f"--a-clip {a_clip}: auto or a number in 0.1..1 is needed") from None
    kept = tuple(name for name in keep if name)  # --keep "" keeps nothing
    parsed = replace(QuantScheme.parse(scheme), kv_clip=kv_clip)
    settings = QuantizeSettings(scheme=parsed, keep=kept, a_clip=clip, **options)
    folder = resolve_model(model)
    if common.plan:
        plan("quantize", {"model": folder, "calibration": calibration}, settings, out, common)
        return
    with show.progress() as progress:
        evidence = quantize(folder, calibration, out, settings, progress=progress, **common.stage())
    show.as_json({"out": str(out), **evidence}) if common.json else _table(evidence, out)


def _table(evidence: dict[str, Any], out: Path) -> None:
    linears, sizes = evidence["linears"], evidence["sizes"]
    show.hardest("linears", linears, "output_error")
    fallbacks = list(evidence["fallbacks"].items())
    for name, reason in fallbacks[:FALLBACKS]:
        show.note(f"{name}: rounded to nearest instead: {reason}")
    if len(fallbacks) > FALLBACKS:
        show.note(f"and {len(fallbacks) - FALLBACKS} more linears: see fallbacks in stage.json")
    ratio = sizes["source_bytes"] / sizes["bytes"]
    show.line(
        f"wrote {out}: {show.size(sizes['bytes'])} (from {show.size(sizes['source_bytes'])}, {ratio:.2f}x smaller), "
        f"{sizes['bits_per_quantized_weight']} bits per quantized weight"
    )
