"""What a recipe costs in perplexity: rotate, quantize, evaluate."""

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
from dfrot.progress import Progress, silent
from dfrot.quant.scheme import QuantScheme
from dfrot.ranks.single import SINGLE, Ranks
from dfrot.runtime.load import load_model
from dfrot.stages.calibrate.run import calibrate
from dfrot.stages.calibrate.settings import CalibrateSettings
from dfrot.stages.outliers.settings import RecipeSettings
from dfrot.stages.quantize.run import quantize
from dfrot.stages.quantize.settings import QuantizeSettings
from dfrot.stages.rotate.run import rotate
from dfrot.stages.rotate.settings import RotateSettings


def recipe_perplexity(
    model: Path,
    recipes: dict[str, OutlierRecipe],
    settings: RecipeSettings,
    work: Path,
    progress: Progress = silent,
    ranks: Ranks = SINGLE,
) -> dict[str, Any]:
    """Perplexities of checkpoint `model` under each recipe, on the same windows; JSON.

    {"bf16", "recipes": {name: {perplexity, ratio_to_bf16, ratio_to_first, ratio_ci, recipe}}, "settings"}. work: a
    folder for checkpoints that are made on the way; it is removed. ranks: share the work of every stage."""
    if ranks.first:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
    ranks.barrier()
    try:
        base = _perplexity(model, settings, (), ranks)
        results: dict[str, Any] = {}
        first_losses: torch.Tensor | None = None
        for number, (name, recipe) in enumerate(recipes.items()):
            progress("recipes", number, len(recipes))
            result = _perplexity(_apply_recipe(model, recipe, settings, work, ranks), settings, (), ranks)
            losses = torch.tensor(result["nll"], dtype=torch.float64)
            first_losses = losses if first_losses is None else first_losses
            ratio, interval = ratio_interval(losses, first_losses)
            results[name] = {
                "perplexity": result["perplexity"],
                "ratio_to_bf16": result["perplexity"] / base["perplexity"],
                "ratio_to_first": ratio,
                "ratio_ci": None if interval is None or number == 0 else list(interval),
                "recipe": recipe.to_dict(),
            }
        progress("recipes", len(recipes), len(recipes))
        ranks.barrier()
    finally:
        if ranks.first:
            shutil.rmtree(work, ignore_errors=True)
    named = {**asdict(settings), "dataset": Path(settings.dataset).name}  # a path would tie the report to a machine
    return {"bf16": base["perplexity"], "recipes": results, "settings": named}


def plain_perplexity(model: Path, settings: RecipeSettings, prefix: Sequence[int] = ()) -> dict[str, Any]:
    """{"perplexity", "nll" per window} of a checkpoint without quantization. prefix: tokens before every window, which
    are context only."""
    return _perplexity(model, settings, prefix)


def quantized_perplexity(
    model: Path, recipe: OutlierRecipe, settings: RecipeSettings, work: Path, prefix: Sequence[int] = ()
) -> dict[str, Any]:
    """{"perplexity", "nll" per window} of a checkpoint after the recipe. work: a folder that is removed afterwards."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        return _perplexity(_apply_recipe(model, recipe, settings, work), settings, prefix)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _perplexity(folder: Path, settings: RecipeSettings, prefix: Sequence[int], ranks: Ranks = SINGLE) -> dict[str, Any]:
    """Perplexity on the first windows of the test split. Where the tokenizer adds the prefix itself, it is removed from
    the text first, so that the windows are the same with and without it."""
    tokenizer = load_tokenizer(folder)
    ids = encode(tokenizer, load_text(settings.dataset, "test", tokenizer).text)
    if prefix and ids[: len(prefix)].tolist() == list(prefix):
        bos = getattr(tokenizer, "bos_token_id", None)
        ids = ids[len(prefix) - (1 if prefix[0] == bos else 0) :].clone()
        if prefix[0] == bos:
            ids[0] = bos  # one BOS at the start of the text, as without the prefix
    rows = evaluation_windows(ids, settings.seqlen)[: settings.windows]
    head = torch.tensor([list(prefix)], dtype=torch.long).expand(len(rows), -1)
    model = load_model(folder)
    nll = window_losses(model, torch.cat([head, rows], 1), skip=len(prefix), ranks=ranks)
    return {"perplexity": perplexity_interval(nll)[0], "nll": nll.tolist()}


def _apply_recipe(
    model: Path, recipe: OutlierRecipe, settings: RecipeSettings, work: Path, ranks: Ranks = SINGLE
) -> Path:
    """Quantize `model` under a recipe into `work`, replacing the previous result; rotations and calibrations stay for
    the next recipe."""
    rotated = _rotated(model, recipe, settings, work, ranks)
    calibration = _calibration(rotated, settings, work, ranks) if settings.algorithm == "gptq" else None
    scheme = replace(QuantScheme.parse(settings.scheme), kv_clip=recipe.kv_clip)
    scheme.require_integers("recipes of dfq outliers have")
    how = QuantizeSettings(
        scheme=scheme,
        algorithm=settings.algorithm,
        keep=recipe.keep,
        sink_tokens=recipe.sink_tokens,
        a_clip=recipe.a_clip,
    )
    packed = work / "packed"
    ranks.barrier()  # nobody reads the previous result any more
    if ranks.first:
        shutil.rmtree(packed, ignore_errors=True)
    quantize(rotated, calibration, packed, how, ranks=ranks)
    return packed


def _rotated(model: Path, recipe: OutlierRecipe, settings: RecipeSettings, work: Path, ranks: Ranks) -> Path:
    """The checkpoint rotated as the recipe says, in `work`; `model` itself without a rotation."""
    if recipe.rotation == "none":
        return model
    folder = work / f"rotated-{recipe.rotation}-{recipe.gamma}-{recipe.a_clip}"
    how = RotateSettings(
        method=recipe.rotation,
        dataset=settings.dataset,
        seqlen=settings.refine_seqlen,
        seed=settings.seed,
        gamma=recipe.gamma if recipe.gamma == "auto" else float(recipe.gamma),
        a_clip=recipe.a_clip,
        gate=False,
    )
    rotate(model, folder, how, resume=True, ranks=ranks)
    return folder


def _calibration(rotated: Path, settings: RecipeSettings, work: Path, ranks: Ranks) -> Path:
    """Calibration tokens for gptq, in `work`."""
    folder = work / f"{rotated.name}.calibration"
    how = CalibrateSettings(
        dataset=settings.dataset,
        samples=settings.samples,
        seqlen=settings.calibration_seqlen,
        seed=settings.seed,
        hessians=False,
        statistics=False,
    )
    calibrate(rotated, folder, how, resume=True, ranks=ranks)
    return folder
