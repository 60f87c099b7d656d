"""Write python-api.md: the public functions and their settings, with signatures taken from the code.

    python docs/reference/generate_python_api.py

A test compares the page with what this prints, so that it cannot fall behind.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from dataclasses import MISSING, Field, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import dfrot
from dfrot.settings import LARGEST_SEED, settings_of

WIDTH = 120
PAGE = Path(__file__).with_name("python-api.md")
INTRO = """# Python API

Written by `docs/reference/generate_python_api.py`; do not edit. Public are the names that `dfrot` exports and the
functions and settings below; everything else may change without notice. `import dfrot` registers dfq checkpoints with
transformers and loads neither torch nor transformers.

Stage functions read folders and publish one (`out`). They return its record, the content of `stage.json`, and raise a
`DfqError` before work starts for anything that cannot be done. `resume`: None continues an interrupted run of the same
request if there is one, True demands one, False starts over. `overwrite` replaces a finished result. `progress` is
called with (stage, done, total). Settings are frozen dataclasses that check their values. Measuring functions return
JSON values and publish nothing. The scripts in `examples/` use these functions.
"""
# name exported by dfrot -> what it is
EXPORTS = {
    "ArchSpec": "description of an architecture",
    "Checkpoint": "a checkpoint folder: configuration and tensors, read lazily",
    "DfqConfig": "the `quantization_config` of a checkpoint",
    "DfqError": "base of all errors that dfq raises on purpose; `exit_code`, `field`, `file`, `tensor`",
    "PackedWeight": "codes, scales and zero points of one weight; `dequantize()`",
    "QuantScheme": 'bits and conventions; `QuantScheme.parse("w4a4kv4")`',
    "Rotation": "an orthogonal matrix with its origin; `load`, `save`",
    "load": "(model, tokenizer) of a checkpoint folder",
}
# heading -> (what it is for, functions, settings), as module:name
SECTIONS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "Load": (
        "A model's folder by path, alias or hub id; a 16-bit, rotated, packed or simulated checkpoint to run.",
        ("dfrot.hub:resolve_model", "dfrot.runtime.load:load"),
        (),
    ),
    "Import": (
        "Another tool's quantized model as an ordinary checkpoint; the other functions read such models as they are.",
        ("dfrot.stages.imports.run:import_model",),
        ("dfrot.stages.imports.run:ImportSettings",),
    ),
    "Rotate": (
        "Fuse R1 and R2 into the weights, refine R1 on text.",
        ("dfrot.stages.rotate.run:rotate",),
        ("dfrot.stages.rotate.run:RotateSettings",),
    ),
    "Calibrate": (
        "Statistics, Hessians and the token sample that GPTQ needs.",
        ("dfrot.stages.calibrate.run:calibrate",),
        ("dfrot.stages.calibrate.run:CalibrateSettings",),
    ),
    "Quantize": (
        "Pack weights; activations and KV cache are quantized at run time.",
        ("dfrot.stages.quantize.run:quantize",),
        ("dfrot.quant.scheme:QuantScheme", "dfrot.stages.quantize.run:QuantizeSettings"),
    ),
    "Tune": (
        "Train scales and norm gains on the 16-bit model's predictions.",
        ("dfrot.stages.tune.run:tune",),
        ("dfrot.stages.tune.run:TuneSettings",),
    ),
    "Evaluate": (
        "Perplexity with paired intervals; divergence from the first checkpoint; speed; a dataset's text.",
        (
            "dfrot.stages.evaluate.perplexity:evaluate",
            "dfrot.stages.evaluate.kl:divergence",
            "dfrot.stages.evaluate.speed:speed",
            "dfrot.data.text:load_text",
        ),
        (
            "dfrot.stages.evaluate.perplexity:PerplexitySettings",
            "dfrot.stages.evaluate.kl:KlSettings",
            "dfrot.stages.evaluate.speed:SpeedSettings",
        ),
    ),
    "Outliers": (
        "Find them, and remove them.",
        ("dfrot.stages.outliers.measure:outliers", "dfrot.stages.outliers.fix:fix"),
        ("dfrot.stages.outliers.measure:OutlierSettings", "dfrot.stages.outliers.fix:FixSettings"),
    ),
    "Export": (
        "Another engine's format: compressed-tensors, gguf or gptq.",
        (
            "dfrot.export.run:export",
            "dfrot.export.serving.planning:plan_for",
            "dfrot.export.serving.command:serving_command",
            "dfrot.export.serving.check:check_engines",
            "dfrot.export.draft.export:export_draft",
            "dfrot.export.draft.check:check_draft",
        ),
        ("dfrot.export.settings:ExportCheckSettings", "dfrot.export.draft.settings:DraftCheckSettings"),
    ),
    "Plan": (
        "Disk, memory, arithmetic and hours of stages, from config.json alone.",
        ("dfrot.planning.estimate:estimate",),
        (),
    ),
    "Publish": (
        "Model card, checks, upload to the hub.",
        ("dfrot.publish.run:publish",),
        ("dfrot.publish.settings:PublishSettings",),
    ),
    "Drafts": (
        "Train a draft, and decode speculatively on a loaded model.",
        (
            "dfrot.stages.draft.train:train",
            "dfrot.draft.store:load_draft",
            "dfrot.stages.draft.generate:custom_generate",
        ),
        (
            "dfrot.stages.draft.settings:DraftSettings",
            "dfrot.stages.draft.settings:DataSettings",
            "dfrot.generation.speculation.tree:TreeShape",
            "dfrot.generation.settings:NgramSettings",
        ),
    ),
    "Recipes": (
        "Every stage of a recipe file.",
        ("dfrot.recipe.recipe:load", "dfrot.recipe.run:run"),
        (),
    ),
}


def resolve(name: str) -> object:
    """The object `module:name`."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


def definition(name: str) -> ast.FunctionDef:
    """The source of a function, as a syntax tree."""
    function = resolve(name)
    assert inspect.isfunction(function), name
    (statement,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    assert isinstance(statement, ast.FunctionDef), name
    return statement


def arguments(function: ast.FunctionDef) -> list[str]:
    """`name: type = default` for every parameter, with `*` where keyword-only ones begin."""
    given = function.args
    plain = [None] * (len(given.args) - len(given.defaults)) + list(given.defaults)
    pairs = [*zip(given.args, plain), *zip(given.kwonlyargs, given.kw_defaults)]
    texts = []
    for argument, default in pairs:
        value = "" if default is None else f" = {ast.unparse(default)}"
        texts.append(ast.unparse(argument) + value)
    if given.kwonlyargs:
        texts.insert(len(given.args), "*")
    return texts


def stub(name: str) -> str:
    """Signature of a function, formatted as ruff formats it."""
    statement = definition(name)
    parts = arguments(statement)
    result = ast.unparse(statement.returns) if statement.returns else "None"
    text = f"def {statement.name}({', '.join(parts)}) -> {result}: ..."
    if len(text) > WIDTH:
        lines = "".join(f"    {part},\n" for part in parts)
        text = f"def {statement.name}(\n{lines}) -> {result}: ..."
    return text.replace("'", '"')


def default_text(field: Field[Any]) -> str:
    """The default of a field as Python; empty where the field is required."""
    if field.default_factory is not MISSING:
        value = field.default_factory()
        return f"{type(value).__name__}(...)" if is_dataclass(value) else repr(value)
    return "" if field.default is MISSING else repr(field.default).replace("'", '"')


def table(name: str) -> list[str]:
    """The fields of a settings class: type, default, and what the setting says of itself."""
    settings = resolve(name)
    assert isinstance(settings, type)
    assert is_dataclass(settings)
    known = settings_of(settings)
    lines = [f"`{settings.__name__}`", "", "| field | type | default | meaning |", "| --- | --- | --- | --- |"]
    for field in fields(settings):
        setting = known.get(field.name)
        meaning = setting.help if setting is not None else ""
        if setting is not None and setting.choices:
            meaning += f" One of {', '.join(setting.choices)}."
        elif setting is not None and setting.range and setting.maximum != LARGEST_SEED:
            meaning += f" {setting.range[0].upper()}{setting.range[1:]}."
        cells = (
            f"`{field.name}`",
            f"`{field.type}`",
            f"`{default_text(field)}`" if default_text(field) else "",
            meaning,
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return [*lines, ""]


def module_of(name: str) -> str:
    """Where it is defined, which may be another module than the one that it is reached by."""
    return getattr(resolve(name), "__module__", name.partition(":")[0])


def imports(names: tuple[str, ...]) -> list[str]:
    """Import lines, one per module."""
    modules: dict[str, list[str]] = {}
    for name in names:
        modules.setdefault(module_of(name), []).append(name.partition(":")[2])
    return [f"from {module} import {', '.join(sorted(modules[module]))}" for module in sorted(modules)]


def page() -> str:
    """The text of python-api.md."""
    lines = [INTRO, "## Exported by `dfrot`", "| name | what |", "| --- | --- |"]
    lines += [f"| `{name}` | {what} |" for name, what in EXPORTS.items()]
    for heading, (purpose, functions, settings) in SECTIONS.items():
        stubs = "\n\n\n".join(stub(name) for name in functions)
        lines += ["", f"## {heading}", purpose, "```python", *imports((*functions, *settings)), "", ""]
        lines += [*stubs.splitlines(), "```", ""]
        for name in settings:
            lines += table(name)
    return re.sub(r"\n{3,}(?=[#`|])", "\n\n", "\n".join(lines).rstrip()) + "\n"


def missing() -> set[str]:
    """Names that `dfrot` exports and the page leaves out, or the other way round."""
    return set(EXPORTS) ^ set(dfrot._PUBLIC)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
