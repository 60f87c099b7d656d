"""What a recipe costs in perplexity: rotate, quantize, evaluate, on the same windows as the default recipe."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from dfrot.data.text import evaluation_windows, load_text
from dfrot.data.tokenizer import encode, load_tokenizer
from dfrot.evaluate.intervals import perplexity_interval, ratio_interval
from dfrot.evaluate.ppl import window_losses
from dfrot.outliers.advice import OutlierRecipe
from dfrot.quant.scheme import QuantScheme
from dfrot.runtime.load import load_model
from dfrot.stage_folder import Progress, silent
from dfrot.stages.calibrate.run import calibrate
from dfrot.stages.calibrate.settings import CalibrateSettings
from dfrot.stages.outliers.settings import RecipeSettings
from dfrot.stages.quantize.run import quantize
from dfrot.stages.quantize.settings import QuantizeSettings
from dfrot.stages.rotate.run import rotate
from dfrot.stages.rotate.settings import RotateSettings


def recipe_perplexity(
    model: Path, recipes: dict[str, OutlierRecipe], settings: RecipeSettings, work: Path, progress: Progress = silent
) -> dict[str, Any]:
    """{"bf16", "recipes": {name: {perplexity, ratio_to_bf16, ratio_to_first, ratio_ci}}, "settings"} of checkpoint
    `model`; `work` is a folder for what is made on the way and is gone afterwards."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        base = plain_perplexity(model, settings)
        found: dict[str, Any] = {}
        first: torch.Tensor | None = None
        for number, (name, recipe) in enumerate(recipes.items()):
            progress("recipes", number, len(recipes))
            result = _measured(_made(model, recipe, settings, work), settings, ())
            losses = torch.tensor(result["nll"], dtype=torch.float64)
            first = losses if first is None else first
            ratio, interval = ratio_interval(losses, first)
            found[name] = {
                "perplexity": result["perplexity"],
                "ratio_to_bf16": result["perplexity"] / base["perplexity"],
                "ratio_to_first": ratio,
                "ratio_ci": None if interval is None or number == 0 else list(interval),
                "recipe": recipe.to_dict(),
            }
        progress("recipes", len(recipes), len(recipes))
    finally:
        shutil.rmtree(work, ignore_errors=True)
    named = {**asdict(settings), "dataset": Path(settings.dataset).name}  # a path would tie the report to a machine
    return {"bf16": base["perplexity"], "recipes": found, "settings": named}


def plain_perplexity(model: Path, settings: RecipeSettings, prefix: Sequence[int] = ()) -> dict[str, Any]:
    """{"perplexity", "nll" per window} of a checkpoint as it is; `prefix`: tokens put before every window, which
    count as context only."""
    return _measured(model, settings, prefix)


def quantized_perplexity(
    model: Path, recipe: OutlierRecipe, settings: RecipeSettings, work: Path, prefix: Sequence[int] = ()
) -> dict[str, Any]:
    """The same after the recipe; `work` is gone afterwards."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        return _measured(_made(model, recipe, settings, work), settings, prefix)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _measured(folder: Path, settings: RecipeSettings, prefix: Sequence[int]) -> dict[str, Any]:
    """Perplexity on the first windows of the test split. Its tokens do not depend on a prefix in the tokenizer: they
    are read from the text behind it."""
    text = load_text(settings.dataset, "test")
    ids = encode(load_tokenizer(folder), text.text)
    if prefix and ids[: len(prefix)].tolist() == list(prefix):
        bos = getattr(load_tokenizer(folder), "bos_token_id", None)
        ids = ids[len(prefix) - (1 if prefix[0] == bos else 0) :].clone()
        if prefix[0] == bos:
            ids[0] = bos  # one BOS at the start of the text, as without the prefix
    rows = evaluation_windows(ids, settings.seqlen)[: settings.windows]
    head = torch.tensor([list(prefix)], dtype=torch.long).expand(len(rows), -1)
    model = load_model(folder)
    nll = window_losses(model, torch.cat([head, rows], 1), skip=len(prefix))
    return {"perplexity": perplexity_interval(nll)[0], "nll": nll.tolist()}


def _made(model: Path, recipe: OutlierRecipe, settings: RecipeSettings, work: Path) -> Path:
    """The checkpoint of one recipe in `work`, replacing the last one; its rotation stays for the next recipe."""
    gamma: float | str = recipe.gamma if recipe.gamma == "auto" else float(recipe.gamma)
    rotated = model
    if recipe.rotation != "none":
        rotated = work / f"rotated-{recipe.rotation}-{recipe.gamma}-{recipe.a_clip}"
        wanted = RotateSettings(
            method=recipe.rotation,
            dataset=settings.dataset,
            seqlen=settings.refine_seqlen,
            seed=settings.seed,
            gamma=gamma,
            a_clip=recipe.a_clip,
            gate=False,
        )
        rotate(model, rotated, wanted, resume=True)
    calibration = None
    if settings.algorithm == "gptq":
        calibration = work / f"{rotated.name}.calibration"
        how = CalibrateSettings(
            dataset=settings.dataset,
            samples=settings.samples,
            seqlen=settings.calibration_seqlen,
            seed=settings.seed,
            hessians=False,
            statistics=False,
        )
        calibrate(rotated, calibration, how, resume=True)
    scheme = replace(QuantScheme.parse(settings.scheme), a_clip=recipe.a_clip, kv_clip=recipe.kv_clip)
    quantization = QuantizeSettings(
        scheme=scheme, algorithm=settings.algorithm, keep=recipe.keep, sink_tokens=recipe.sink_tokens
    )
    packed = work / "packed"
    shutil.rmtree(packed, ignore_errors=True)
    quantize(rotated, calibration, packed, quantization)
    return packed
