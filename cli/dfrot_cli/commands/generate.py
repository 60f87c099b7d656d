"""dfq generate: text from a checkpoint, as it comes."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import click

from dfrot_cli import show
from dfrot_cli.commands.draft.options import sampling_of, sampling_options, shape_options, shapes_of
from dfrot_cli.options import Common, common, model_option
from dfrot_cli.plan import plan

_IMAGE = "An image that stands before TEXT, which is a message then; repeatable. The model must see."


@click.command("generate")
@model_option
@click.option("--draft", type=click.Path(path_type=Path), metavar="D", help="Result of dfq draft train; plain without.")
@click.option("--prompt", required=True, metavar="TEXT", help="The text to go on with; - reads it from stdin.")
@click.option("--chat", is_flag=True, help="TEXT is a message: put it into the model's chat template.")
@click.option("--system", metavar="TEXT", help="With --chat: what the system message says.")
@click.option("--image", "images", type=click.Path(path_type=Path), multiple=True, metavar="FILE", help=_IMAGE)
@click.option("--max-new-tokens", type=click.IntRange(1), default=128, show_default=True)
@click.option("--stop", multiple=True, metavar="TEXT", help="End before this text; repeatable.")
@click.option("--ignore-eos", is_flag=True, help="Go on behind the end-of-text token.")
@shape_options
@sampling_options
@click.option("--force", is_flag=True, help="Use a draft of another target.")
@common
def command(
    model: str,
    draft: Path | None,
    prompt: str,
    chat: bool,
    system: str | None,
    images: tuple[Path, ...],
    stop: tuple[str, ...],
    chain: tuple[int, ...],
    tree: tuple[str, ...],
    force: bool,
    common: Common,
    **given: Any,
) -> None:
    """Generate text with any checkpoint that dfq loads: 16-bit, rotated or packed.

    A draft (dfq draft train) makes it faster and changes nothing: greedy text is the same, samples have the same
    distribution. For a server see dfq serve."""
    common.prepare()
    from dfrot.errors import InputError
    from dfrot.generation.engine import Engine, TextRequest
    from dfrot.hub import resolve_model

    if len(chain) + len(tree) > 1:
        raise InputError("--chain and --tree: give one shape")
    if system is not None and not (chat or images):
        raise InputError("--system: is a message of a conversation; add --chat")
    shape = shapes_of(chain, tree)[0] if chain or tree else None
    sampling, folder = sampling_of(given), resolve_model(model)
    text = sys.stdin.read() if prompt == "-" else prompt
    if common.plan:
        told = {
            "chat": chat,
            "system": system,
            "images": images,
            "stop": stop,
            "sampling": sampling,
            "shape": shape,
            **given,
        }
        plan("generate", {"model": folder, "draft": draft}, told, None, common)
        return
    engine = Engine(folder, draft, shape, force)
    messages = [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": text}]
    seen = None
    if images:
        ids, seen = engine.encode_question(text, images, system)
    else:
        ids = engine.encode_chat(messages) if chat else engine.encode(text)
    job = engine.start(TextRequest(ids, stops=stop, sampling=sampling, seed=common.seed, images=seen, **given))
    begin, pieces = time.perf_counter(), []
    for piece in job:
        pieces.append(piece)
        if not common.json:
            show.piece(piece)
    seconds = time.perf_counter() - begin
    used, made = job.usage
    numbers = {"how": engine.how, "finish": job.finish, "prompt_tokens": used, "new_tokens": made}
    rates = {"tokens_per_second": made / seconds, "tau": job.out.tau if engine.shape else None}
    if common.json:
        show.as_json({"text": "".join(pieces), "tokens": job.out.tokens, **numbers, **rates})
        return
    show.line("")
    show.note(f"{engine.how}: {made} tokens, {made / seconds:,.1f} tokens/s with the prompt of {used}, {job.finish}")
