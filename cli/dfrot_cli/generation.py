"""Generating text from the command line: what dfq generate and its old name do."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dfrot.generation.sampling import Sampling
from dfrot.generation.settings import GenerateSettings
from dfrot_cli import show
from dfrot_cli.draft_options import draft_of, draft_options, shape_options, single_shape
from dfrot_cli.engine import open_engine
from dfrot_cli.models import model_folder
from dfrot_cli.options import Common, model_option
from dfrot_cli.plan import plan
from dfrot_cli.setting_options import options_of, settings_from

if TYPE_CHECKING:
    from dfrot.generation.engine import Engine, Generation

Function = TypeVar("Function", bound=Callable[..., Any])


def generate_options(function: Function) -> Function:
    """The options of `dfq generate` and of its old name."""
    draft = draft_options()
    for add in (options_of(Sampling), shape_options, options_of(GenerateSettings), draft, model_option):
        function = add(function)
    return function


def generate(
    name: str,
    common: Common,
    model: str,
    draft: Path | str | None,
    chain: tuple[int, ...],
    tree: tuple[str, ...],
    **options: Any,
) -> None:
    """Run `dfq NAME`: print the text, or the plan, or one JSON document."""
    common.prepare()
    from dfrot.errors import InputError

    shape, sampling = single_shape(chain, tree), settings_from(Sampling, options)
    source = draft_of(draft, options)
    settings = settings_from(GenerateSettings, options)
    if sampling.greedy and (sampling.top_k or sampling.top_p < 1):
        show.note("--top-k and --top-p restrict sampling; at --temperature 0 the likeliest token is taken")
    if settings.system is not None and not (settings.chat or settings.images):
        raise InputError("`system` is a message of a conversation: add `chat`", field=("system", "chat"))
    folder = model_folder(model)
    if common.plan:
        known = {key: value for key, value in vars(settings).items() if key not in ("prompt", "force")}
        plan(name, {"model": folder, "draft": draft}, {**known, "sampling": sampling, "shape": shape}, None, common)
        return
    engine = open_engine(folder, source, shape, settings.force)
    job = _start(engine, settings, sampling, common.seed)
    begin, pieces = time.perf_counter(), []
    for piece in job:
        pieces.append(piece)
        if not common.json:
            show.piece(piece)
    _result(engine, job, "".join(pieces), time.perf_counter() - begin, common)


def _standard_input() -> str:
    """The prompt on stdin. Raises InputError where it is not UTF-8."""
    from dfrot.errors import InputError

    try:
        return sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"stdin: not UTF-8 at byte {error.start}; convert the prompt to UTF-8") from None


def _start(engine: Engine, settings: GenerateSettings, sampling: Sampling, seed: int) -> Generation:
    from dfrot.generation.engine import TextRequest

    text, images = _standard_input() if settings.prompt == "-" else settings.prompt, None
    if settings.images:
        ids, images = engine.encode_question(text, settings.images, settings.system)
        images = replace(images, keep=settings.keep)
    elif settings.chat:
        system = [{"role": "system", "content": settings.system}] if settings.system else []
        ids = engine.encode_chat([*system, {"role": "user", "content": text}])
    else:
        ids = engine.encode(text)
    limits: dict[str, Any] = {
        "max_new_tokens": settings.max_new_tokens,
        "stops": settings.stop,
        "ignore_eos": settings.ignore_eos,
    }
    return engine.start(TextRequest(ids, sampling=sampling, seed=seed, images=images, **limits))


def _result(engine: Engine, job: Generation, text: str, seconds: float, common: Common) -> None:
    prompt_tokens, new_tokens = job.usage
    rate = new_tokens / seconds
    if common.json:
        numbers = {"how": engine.how, "finish": job.finish, "prompt_tokens": prompt_tokens, "new_tokens": new_tokens}
        drafting = {"tau": job.out.tau if job.out.rounds and job.out.accepted else None, "rounds": job.out.rounds}
        choice = None if job.policy is None else job.policy.to_dict()
        result = {"text": text, "tokens": job.out.tokens, **numbers, "tokens_per_second": rate, **drafting}
        show.as_json({**result, "choice": choice})
        return
    show.line("")
    show.note(
        f"{engine.how}: {new_tokens} tokens, {rate:,.1f} tokens/s with the prompt of {prompt_tokens}, {job.finish}"
    )
