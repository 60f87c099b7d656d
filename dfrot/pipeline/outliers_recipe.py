"""What a recipe costs in perplexity: rotate, quantize, evaluate, on the same windows as the default recipe."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dfrot.evaluate.intervals import ratio_interval
from dfrot.outliers.advice import Recipe
from dfrot.pipeline.calibrate import CalibrateSettings, calibrate
from dfrot.pipeline.evaluate import EvalSettings, evaluate
from dfrot.pipeline.quantize import QuantizeSettings, quantize
from dfrot.pipeline.rotate import RotateSettings, rotate
from dfrot.quant.scheme import QuantScheme
from dfrot.stage import Progress, silent


@dataclass(frozen=True)
class RecipeSettings:
    """scheme, algorithm (rtn isolates what rotation and outlier handling do; gptq is slower and better), evaluation
    windows; samples x calibration_seqlen tokens for gptq, refine_seqlen for the refinement."""

    dataset: str = "wikitext2"
    scheme: str = "w4a4kv4"
    algorithm: str = "rtn"
    seqlen: int = 1024
    windows: int = 8
    seed: int = 0
    samples: int = 32
    calibration_seqlen: int = 1024
    refine_seqlen: int = 2048


def recipe_perplexity(
    model: Path, recipes: dict[str, Recipe], settings: RecipeSettings, work: Path, progress: Progress = silent
) -> dict[str, Any]:
    """{"bf16", "recipes": {name: {perplexity, ratio_to_bf16, ratio_to_first, ratio_ci}}, "settings"} of checkpoint
    `model`; `work` is a folder for what is made on the way and is gone afterwards."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    evaluation = EvalSettings(dataset=settings.dataset, seqlen=settings.seqlen, windows=settings.windows)
    try:
        base = evaluate([model], evaluation)["results"][0]
        found: dict[str, Any] = {}
        first: torch.Tensor | None = None
        for number, (name, recipe) in enumerate(recipes.items()):
            progress("recipes", number, len(recipes))
            result = _one(model, recipe, settings, evaluation, work)
            losses = torch.tensor(result["window_nll"], dtype=torch.float64)
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
    return {"bf16": base["perplexity"], "recipes": found, "settings": asdict(settings)}


def _one(model: Path, recipe: Recipe, settings: RecipeSettings, evaluation: EvalSettings, work: Path) -> dict[str, Any]:
    """Make the checkpoint of one recipe, measure it, remove it (its rotation stays for the next recipe)."""
    gamma: float | str = recipe.gamma if recipe.gamma == "auto" else float(recipe.gamma)
    rotated = model
    if recipe.rotation != "none":
        rotated = work / f"rotated-{recipe.rotation}-{recipe.gamma}"
        wanted = RotateSettings(
            method=recipe.rotation,
            dataset=settings.dataset,
            seqlen=settings.refine_seqlen,
            seed=settings.seed,
            gamma=gamma,
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
    scheme = replace(QuantScheme.parse(settings.scheme), kv_clip=recipe.kv_clip)
    quantization = QuantizeSettings(
        scheme=scheme, algorithm=settings.algorithm, keep=recipe.keep, sink_tokens=recipe.sink_tokens
    )
    packed = work / "packed"
    quantize(rotated, calibration, packed, quantization)
    try:
        return dict(evaluate([packed], evaluation)["results"][0])
    finally:
        shutil.rmtree(packed, ignore_errors=True)
