"""dfq bench serve: a server under load."""

from __future__ import annotations

from typing import Any

from dfrot.bench.settings import ServeBenchSettings
from dfrot_cli import show
from dfrot_cli.grouped_help import dfq_command
from dfrot_cli.options import Common, common
from dfrot_cli.plan import plan
from dfrot_cli.setting_options import options_of, settings_from

OPTIONAL: dict[str, dict[str, Any]] = {"api_key": {"envvar": "DFQ_API_KEY", "show_envvar": True}}


@dfq_command("serve")
@options_of(ServeBenchSettings, more=OPTIONAL)
@common
def command(common: Common, **options: Any) -> None:
    """Measure a running OpenAI-compatible server, dfq's or another, under clients that ask one after the other:
    requests and tokens per second, the wait for the first token and between tokens, errors."""
    common.prepare()
    from dfrot.bench.serve.run import bench_serve

    settings = settings_from(ServeBenchSettings, options, seed=common.seed)
    if common.plan:
        plan("bench serve", {}, {**vars(settings), "api_key": bool(settings.api_key)}, None, common)
        return
    with show.progress() as progress:
        result = bench_serve(settings, progress)
    if common.json:
        show.as_json(result)
        return
    heads = ("clients", "requests/s", "tokens/s", "prompt tokens/s", "first p50", "p95", "between p50", "p95", "errors")
    rows = []
    for level in result["levels"]:
        first, between = level["first_token"], level["between_tokens"]
        rates = (level["requests_per_s"], level["new_tokens_per_s"], level["prompt_tokens_per_s"])
        waits = (first["p50"], first["p95"], between["p50"], between["p95"])
        rows.append((level["clients"], *rates, *(_milliseconds(wait) for wait in waits), level["errors"]))
    show.table(f"{result['model']}: {result['levels'][0]['requests']} requests or more per row", heads, rows)
    for level in result["levels"]:
        for text, count in level["error_kinds"].items():
            show.note(f"{level['clients']} clients, {count} x {text}")


def _milliseconds(seconds: float | None) -> str | None:
    return None if seconds is None else f"{1000 * seconds:,.1f} ms"
