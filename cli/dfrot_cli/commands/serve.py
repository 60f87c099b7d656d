"""dfq serve: an OpenAI-compatible endpoint for a few users."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dfrot_cli import show
from dfrot_cli.commands.draft_options import shape_options, shapes_of
from dfrot_cli.options import Common, common, model_option
from dfrot_cli.plan import plan


@click.command("serve")
@model_option
@click.option("--draft", type=click.Path(path_type=Path), metavar="D", help="Result of dfq draft train.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Beyond this machine it needs --api-key.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one.")
@click.option("--name", metavar="ID", help="What clients call the model. Default: the folder's name.")
@click.option("--api-key", metavar="KEY", envvar="DFQ_API_KEY", show_envvar=True, help="Clients must send it.")
@click.option("--open-to-all", is_flag=True, help="Allow an address beyond this machine without a key.")
@click.option("--parallel", type=click.IntRange(1), default=4, show_default=True, help="Requests served in turns.")
@click.option("--queue", type=click.IntRange(0), default=32, show_default=True, help="Requests that may wait.")
@click.option("--max-tokens", type=click.IntRange(1), default=1024, show_default=True, help="New tokens per request.")
@click.option("--max-body", type=click.IntRange(1), default=1 << 20, show_default=True, help="Bytes per request.")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), default=600.0, show_default=True, help="Seconds.")
@shape_options
@click.option("--force", is_flag=True, help="Use a draft of another target.")
@common
def command(
    model: str,
    draft: Path | None,
    host: str,
    port: int,
    name: str | None,
    open_to_all: bool,
    chain: tuple[int, ...],
    tree: tuple[str, ...],
    force: bool,
    common: Common,
    **limits: Any,
) -> None:
    """Serve a checkpoint at /v1/chat/completions, /v1/completions and /v1/models, streaming or whole, as OpenAI's
    clients expect it; /health and /metrics (Prometheus) beside them. Ctrl-C or SIGTERM ends it when running requests
    are done. Where the model sees, messages may hold images as data: URIs.

    Made for one machine and a few users, who take turns token by token. Large deployments use vLLM: dfq export
    writes what it loads."""
    common.prepare()
    from dfrot.errors import InputError, ResourceError
    from dfrot.generation.engine import Engine
    from dfrot.hub import resolve_model

    try:
        from dfrot.serve.server import loopback, serve
        from dfrot.serve.settings import ServeSettings
    except ModuleNotFoundError as error:
        raise ResourceError(f"dfq serve needs {error.name}, which is not installed: pip install 'dfq[serve]'") from None
    if len(chain) + len(tree) > 1:
        raise InputError("--chain and --tree: give one shape")
    folder = resolve_model(model)
    settings = ServeSettings(name=name or folder.resolve().name, **limits)
    if common.plan:
        told = {"host": host, "port": port, "name": settings.name, **limits, "api_key": bool(limits["api_key"])}
        plan("serve", {"model": folder, "draft": draft}, told, None, common)
        return
    if settings.api_key is None and not open_to_all and not loopback(host):
        raise InputError(f"--host {host}: others could use the model; set --api-key, or say --open-to-all")
    engine = Engine(folder, draft, shapes_of(chain, tree)[0] if chain or tree else None, force)

    def ready(url: str) -> None:
        fact = {"url": f"{url}/v1", "model": settings.name, "decoding": engine.how, "context": engine.context}
        show.as_json(fact) if common.json else show.facts("serving", fact)

    def report(job: dict[str, Any]) -> None:
        show.note("request {job}: {prompt} + {new} tokens, {outcome}, {seconds:.2f} s".format(**job))

    serve(engine, settings, host, port, open_to_all=open_to_all, ready=ready, report=report)
