"""dfq serve: an OpenAI-compatible endpoint for one machine."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import click

from dfrot.generation.settings import GenerateSettings
from dfrot.serve.settings import ServeSettings
from dfrot_cli import show
from dfrot_cli.draft_options import draft_of, draft_options, shape_options, single_shape
from dfrot_cli.engine import open_engine
from dfrot_cli.grouped_help import dfq_command
from dfrot_cli.help_sections import SERVE
from dfrot_cli.models import model_folder, served_name
from dfrot_cli.options import Common, common, model_option
from dfrot_cli.plan import plan
from dfrot_cli.setting_options import options_of, settings_from

OPTIONAL: dict[str, dict[str, Any]] = {
    "name": {"required": False},
    "api_key": {"envvar": "DFQ_API_KEY", "show_envvar": True},
}


@dfq_command("serve", SERVE)
@model_option
@draft_options()
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen on. Any but this machine needs --api-key."
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    metavar="N",
    default=8000,
    show_default=True,
    help="Port to listen on; 0 takes a free one.",
)
@options_of(ServeSettings, more=OPTIONAL)
@click.option("--open-to-all", is_flag=True, help="Allow an address beyond this machine without a key.")
@shape_options
@options_of(GenerateSettings, only=("force",))
@common
def command(
    model: str,
    draft: Path | str | None,
    host: str,
    port: int,
    name: str | None,
    open_to_all: bool,
    chain: tuple[int, ...],
    tree: tuple[str, ...],
    force: bool,
    common: Common,
    **options: Any,
) -> None:
    """Serve a checkpoint over HTTP as OpenAI's clients expect it; requests that come together share every step.

    Endpoints: /v1/chat/completions, /v1/completions and /v1/models, streaming or whole; /health and /metrics
    (Prometheus). Messages to a VLM may hold images as data: URIs. Ctrl-C or SIGTERM ends the server when running
    requests are done. For large deployments export to vLLM (dfq export)."""
    common.prepare()
    from dfrot.errors import ResourceError

    try:
        from dfrot.serve.server import require_private, serve
    except ModuleNotFoundError as error:
        raise ResourceError(f"dfq serve needs {error.name}, which is not installed: pip install 'dfq[serve]'") from None
    shape, source = single_shape(chain, tree), draft_of(draft, options)
    folder = model_folder(model)
    settings = settings_from(ServeSettings, options, name=name or served_name(folder))
    if common.plan:
        shown = {"host": host, "port": port, **vars(settings), "api_key": bool(settings.api_key)}
        plan("serve", {"model": folder, "draft": draft}, shown, None, common)
        return
    if not open_to_all:
        require_private(host, settings)
    engine = open_engine(folder, source, shape, force)

    facts: dict[str, Any] = {}

    def ready(url: str) -> None:
        gc.collect()
        gc.freeze()  # what is loaded stays: looking through it for garbage stops the computing thread for long
        shown = {"url": f"{url}/v1", "model": settings.name, "decoding": engine.how, **facts, "context": engine.context}
        show.as_json(shown) if common.json else show.facts("serving", shown)

    def batching(how: str) -> None:
        facts["batching"] = how

    serve(engine, settings, host, port, open_to_all=open_to_all, ready=ready, batching=batching, report=_report)


def _report(job: dict[str, Any]) -> None:
    show.note("request {job}: {prompt} + {new} tokens, {outcome}, {seconds:.2f} s".format(**job))
