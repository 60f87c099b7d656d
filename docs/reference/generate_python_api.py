"""Write python-api.md: the public functions and their settings, with signatures taken from the code.

    python docs/reference/generate_python_api.py

A test compares the page with what this prints, so that it cannot fall behind.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from importlib import import_module
from pathlib import Path
from typing import Any

import dfrot
from dfrot.settings import settings_of

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
        "Perplexity with paired intervals; divergence from the first checkpoint; speed.",
        (
            "dfrot.stages.evaluate.perplexity:evaluate",
            "dfrot.stages.evaluate.kl:divergence",
            "dfrot.stages.evaluate.speed:speed",
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
        ("dfrot.export.run:export",),
        (),
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
            "dfrot.generation.tree:TreeShape",
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


def definition(name: str) -> ast.stmt:
    """The statement of the source that defines it, without its body's code."""
    item = resolve(name)
    assert inspect.isfunction(item) or inspect.isclass(item), name
    (statement,) = ast.parse(textwrap.dedent(inspect.getsource(item))).body
    if isinstance(statement, ast.FunctionDef):
        statement.body = [ast.Expr(ast.Constant(...))]
    elif isinstance(statement, ast.ClassDef):
        statement.body = [line for line in statement.body if isinstance(line, ast.AnnAssign)]
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


def default_text(settings: type[Any], field: dataclasses.Field[Any]) -> str:
    """` = default` of a field; empty where it is required."""
    if field.default is not dataclasses.MISSING:
        return " = " + repr(field.default).replace("'", '"')  # as ruff formats it
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
        return f" = {type(value).__name__}()" if dataclasses.is_dataclass(value) else f" = {value!r}"
    return ""


def fields_text(settings: type[Any]) -> str:
    """A settings class with what `dfrot.settings` knows about each field: help, range and choices."""
    lines = ["@dataclass(frozen=True)", f"class {settings.__name__}:"]
    described = settings_of(settings)
    for field in dataclasses.fields(settings):
        if known := described.get(field.name):
            limits = [known.range] if known.range else []
            limits += [f"one of {', '.join(known.choices)}"] if known.choices else []
            text = " ".join([known.help, *(f"{limit[0].upper()}{limit[1:]}." for limit in limits)])
            lines += textwrap.wrap(text, 110, initial_indent="    # ", subsequent_indent="    # ")
        lines.append(f"    {field.name}: {str(field.type).replace(chr(39), chr(34))}{default_text(settings, field)}")
    return "\n".join(lines)


def stub(name: str) -> str:
    """Signature of a function or fields of a settings class, as Python."""
    item, statement = resolve(name), definition(name)
    if isinstance(item, type) and dataclasses.is_dataclass(item) and settings_of(item):
        return fields_text(item)
    if not isinstance(statement, ast.FunctionDef):
        return ast.unparse(statement)
    parts = arguments(statement)
    result = ast.unparse(statement.returns) if statement.returns else "None"
    text = f"def {statement.name}({', '.join(parts)}) -> {result}: ..."
    if len(text) <= 120:
        return text
    lines = "".join(f"    {part},\n" for part in parts)
    return f"def {statement.name}(\n{lines}) -> {result}: ..."


def module_of(name: str) -> str:
    """Where it is defined, which may be another module than the one that it is reached by."""
    return getattr(resolve(name), "__module__", name.partition(":")[0])


def page() -> str:
    """The text of python-api.md."""
    lines = [INTRO, "## Exported by `dfrot`", "| name | what |", "| --- | --- |"]
    lines += [f"| `{name}` | {what} |" for name, what in EXPORTS.items()]
    for heading, (purpose, functions, settings) in SECTIONS.items():
        names = (*functions, *settings)
        modules: dict[str, list[str]] = {}
        for name in names:
            modules.setdefault(module_of(name), []).append(name.partition(":")[2])
        imports = [f"from {module} import {', '.join(sorted(modules[module]))}" for module in sorted(modules)]
        stubs = [stub(name) for name in names]
        lines += [
            "",
            f"## {heading}",
            purpose,
            "```python",
            *imports,
            "",
            "",
            *"\n\n\n".join(stubs).splitlines(),
            "```",
        ]
    return "\n".join(lines) + "\n"


def missing() -> set[str]:
    """Names that `dfrot` exports and the page leaves out, or the other way round."""
    return set(EXPORTS) ^ set(dfrot._PUBLIC)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
