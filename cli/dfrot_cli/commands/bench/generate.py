"""dfq bench generate: a whole model beside llama.cpp."""

from __future__ import annotations

from typing import Any

from dfrot.bench.settings import GenerateBenchSettings
from dfrot_cli import show
from dfrot_cli.grouped_help import dfq_command
from dfrot_cli.options import Common, common
from dfrot_cli.plan import plan
from dfrot_cli.setting_options import options_of, settings_from


@dfq_command("generate")
@options_of(GenerateBenchSettings)
@common
def command(common: Common, **options: Any) -> None:
    """Measure tokens per second of prefill and decoding at batch 1, and peak memory, beside llama.cpp Q4_0."""
    common.prepare()
    from dfrot.bench.models.generate import bench_generate
    from dfrot.bench.models.presets import preset

    settings = vars(settings_from(GenerateBenchSettings, options, seed=common.seed))
    model = settings["model"]
    if model is None:
        preset(settings["shape"])
    if common.plan:
        plan("bench generate", {"model": model} if model else {}, settings, None, common)
        return
    with show.progress() as progress:
        result = bench_generate(**settings, progress=progress)
    if common.json:
        show.as_json(result)
        return
    _table(result)


def _table(result: dict[str, Any]) -> None:
    machine = result["machine"]
    title = (
        f"{result['model'] or result['shape']}, batch 1, {machine['threads']} threads, {machine['processor']}: "
        f"prefill of {result['prefill']}, {result['decode']} tokens decoded behind {result['prompt']}"
    )
    heads = ("", "prefill/s", "+-%", "decode/s", "+-%", "x prefill", "x decode", "memory", "peak", "x memory", "x peak")
    rows = []
    for name, run in result["results"].items():
        used, ratio = run["memory"] or {}, run.get("ratio", {})
        rows.append((
            name, run["prefill_per_s"], 100 * run["prefill"]["spread"],
            run["decode_per_s"], 100 * run["decode"]["spread"], ratio.get("prefill"), ratio.get("decode"),
            show.size(used["model"]) if used else None, show.size(used["peak"]) if used else None,
            ratio.get("model_memory"), ratio.get("peak_memory"),
        ))  # fmt: skip
    show.table(title, heads, rows)
    show.line("memory: above what the imported libraries take; peak: the whole process; x: ours over llama.cpp's rate")
