"""dfq draft generate: text from the target, several tokens per pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dfrot_cli import show
from dfrot_cli.commands.draft_options import keep_option, sampling_of, sampling_options, shape_options
from dfrot_cli.options import Common, common, model_option
from dfrot_cli.plan import plan

_IMAGE = "An image that stands before TEXT, in the chat template; repeatable. The model must see."


@click.command("generate")
@model_option
@click.option("--draft", type=click.Path(path_type=Path), metavar="D", help="Result of dfq draft train; plain without.")
@click.option("--prompt", required=True, metavar="TEXT")
@click.option("--image", "images", type=click.Path(path_type=Path), multiple=True, metavar="FILE", help=_IMAGE)
@keep_option
@click.option("--max-new-tokens", type=click.IntRange(1), default=128, show_default=True)
@click.option("--stop", multiple=True, metavar="TEXT", help="End with the token that completes it; repeatable.")
@click.option("--ignore-eos", is_flag=True, help="Go on behind the end-of-text token.")
@shape_options
@sampling_options
@click.option("--force", is_flag=True, help="Use a draft of another target.")
@common
def generate(
    model: str,
    draft: Path | None,
    prompt: str,
    chain: tuple[int, ...],
    tree: tuple[str, ...],
    common: Common,
    **given: Any,
) -> None:
    """Generate text. With a draft the text is the same (greedy) or has the same distribution (sampling).

    Without --chain or --tree chain, tree or neither is chosen from costs measured here; where drafting does not
    pay, decoding is plain, and says so."""
    common.prepare()
    from dfrot.errors import InputError
    from dfrot.hub import resolve_model
    from dfrot.stages.draft.generate import generate_text
    from dfrot.stages.draft.settings import GenerateSettings
    from dfrot_cli.commands.draft_options import shapes_of

    if len(chain) + len(tree) > 1:
        raise InputError("--chain and --tree: give one shape")
    sampling, folder = sampling_of(given), resolve_model(model)
    shape = shapes_of(chain, tree)[0] if chain or tree else None
    settings = GenerateSettings(prompt=prompt, shape=shape, sampling=sampling, seed=common.seed, **given)
    if common.plan:
        plan("draft generate", {"model": folder, "draft": draft}, settings, None, common)
        return
    result = generate_text(folder, draft, settings)
    if common.json:
        show.as_json(result)
        return
    show.line(result["text"])
    show.note(f"{result['how']}: {len(result['tokens'])} tokens, {result['tokens_per_second']:,.1f} tokens/s decoding")
