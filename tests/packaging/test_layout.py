"""Rules of the source tree: who imports whom, one door per dependency, what the library never does."""

from __future__ import annotations

import ast
import functools
import importlib.util
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAY_IMPORT = {"kernels/dfrot_kernels": set(), "dfrot": {"dfrot_kernels"}, "cli/dfrot_cli": {"dfrot", "dfrot_kernels"}}
OURS = {"dfrot", "dfrot_cli", "dfrot_kernels", "kernels", "cli", "tests", "recipes"}
DRIVERS = "dfrot/export/serving/drivers/"  # scripts for environments of engines
DOORS = {
    "click": ("cli/dfrot_cli/",),
    "rich": ("cli/dfrot_cli/show.py",),
    "transformers": (
        "dfrot/compat/",
        "dfrot/runtime/",
        "dfrot/vision/",
        "dfrot/data/tokenizer.py",
        "dfrot/race/drivers/torch_engine.py",
        DRIVERS,
    ),
    "peft": ("dfrot/runtime/lora.py",),
    "huggingface_hub": (
        "dfrot/hub.py",
        "dfrot/hub_download.py",
        "dfrot/publish/upload.py",
        "dfrot/inputs/gguf/folder.py",
        "dfrot/data/wikitext.py",
    ),
    "ctypes": ("kernels/dfrot_kernels/native.py", "kernels/dfrot_kernels/memory.py"),
    "triton": ("kernels/dfrot_kernels/triton/", "kernels/dfrot_kernels/ops/"),
    "fast_hadamard_transform": ("kernels/dfrot_kernels/ops/hadamard/triton.py",),
    "PIL": ("dfrot/data/images.py",),
    "pyarrow": ("dfrot/data/row_files.py",),
    "matplotlib": ("dfrot/bench/",),
    "llama_cpp": ("dfrot/bench/models/peer.py", "dfrot/export/engines.py", "dfrot/race/drivers/", DRIVERS),
    "ik_llama_cpp": ("dfrot/race/drivers/",),
    "openvino": ("dfrot/race/drivers/",),
    "openvino_genai": ("dfrot/race/drivers/",),
    "onnxruntime_genai": ("dfrot/race/drivers/",),
    "vllm": ("dfrot/race/drivers/", DRIVERS),
    "gguf": ("dfrot/inputs/gguf/package.py",),
    "yaml": ("dfrot/recipe/document.py", "dfrot/publish/front_matter.py"),
    "starlette": ("dfrot/serve/",),
    "uvicorn": ("dfrot/serve/",),
    "lm_eval": ("dfrot/stages/evaluate/",),
    "pickle": (),
    "torch.utils.cpp_extension": (),
}
ENVIRONMENT = {"kernels/dfrot_kernels/native.py", "kernels/dfrot_kernels/which.py"}
# Top-level files of the library that every package may import; they import one another only.
FILES = {
    *("errors", "settings", "files", "dtypes", "processor", "checkpoint", "checkpoint_writer", "safetensors_file"),
    *("weight_files", "tensor_file", "training_state", "stage_folder", "progress", "matrix_stacks", "number_formats"),
    *("straight_through", "free_memory", "field_types"),
}
# The packages of the library (and two files above FILES): the duty of each, and which others it may import.
PACKAGES = {
    "arch": ("what an architecture reads and writes, as data", ""),
    "data": ("texts, conversations, images, tokenizers", "compat"),
    "compat": ("what relies on the insides of transformers", ""),
    "reference": ("the models that ship", ""),
    "rotation": ("Hadamard matrices, fusing, refinement of R1", "arch ranks"),
    "inputs": ("quantized models of other tools, read as 16-bit checkpoints", "arch data"),
    "ranks": ("processes that share a stage", ""),
    "quant": ("schemes, grids, algorithms, quantized linears", "arch compat ranks rotation"),
    "hub": ("from the name of a model to its folder", "hub_download inputs quant reference"),
    "hub_download": ("fetching a model from the hub", ""),
    "lineage": ("where a checkpoint comes from", "rotation"),
    "runtime": ("running a checkpoint", "arch compat data inputs quant rotation"),
    "vision": ("images in prompts, vision parts of checkpoints", "arch compat data inputs rotation"),
    "calib": ("statistics of activations", "arch quant ranks rotation runtime"),
    "transforms": ("free transforms beside the rotations, in closed form", "arch calib ranks rotation runtime"),
    "evaluate": ("perplexity, divergence, intervals", "data ranks"),
    "generation": ("text, token by token, plain or speculative", "arch compat data inputs quant runtime vision"),
    "draft": ("speculative drafts and their training", "arch data generation quant rotation runtime vision"),
    "outliers": ("finding, explaining and removing outliers", "arch calib data inputs quant ranks rotation runtime"),
    "bench": ("speed beside others", "arch data draft evaluate generation inputs quant rotation runtime"),
    "stages": (
        "what the commands do: folders in, one folder out",
        "arch bench calib data draft evaluate generation inputs lineage outliers quant ranks rotation runtime "
        "transforms vision",
    ),
    "planning": ("what stages cost, from config.json alone", "arch calib quant rotation runtime stages"),
    "export": (
        "formats of other engines",
        "arch data draft evaluate generation inputs lineage quant rotation runtime stages vision",
    ),
    "race": (
        "whole models beside other engines, a process for each",
        "arch bench data evaluate export generation inputs quant runtime",
    ),
    "recipe": ("a run from one file", "export hub inputs quant stages vision"),
    "publish": (
        "model cards, checks and the upload",
        "data export hub hub_download inputs lineage quant rotation stages",
    ),
    "serve": ("the HTTP endpoint", "data generation vision"),
}
MAY_USE = {package: FILES | set(others.split()) for package, (_, others) in PACKAGES.items()}
MAX_LINES = 400


def sources() -> list[tuple[str, Path]]:
    return [(folder, path) for folder in MAY_IMPORT for path in sorted((ROOT / folder).rglob("*.py"))]


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@functools.cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def imports(path: Path) -> Iterator[str]:
    """Full dotted names of everything that a file imports, at any depth."""
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(path)}: relative import; write the full name"
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


def top(module: str) -> str:
    return module.split(".")[0]


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_arrows_point_one_way(folder: str) -> None:
    forbidden = OURS - MAY_IMPORT[folder] - {Path(folder).name}
    for _, path in (item for item in sources() if item[0] == folder):
        wrong = {top(module) for module in imports(path)} & forbidden
        assert not wrong, f"{name(path)} imports {sorted(wrong)}"


def module_name(path: Path) -> str:
    folder = next(folder for folder in MAY_IMPORT if (ROOT / folder) in path.parents)
    parts = path.relative_to((ROOT / folder).parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def graph() -> dict[str, set[str]]:
    """module -> modules of ours that it imports, at any depth of its code."""
    modules = {module_name(path): path for _, path in sources()}
    edges: dict[str, set[str]] = {}
    for module, path in modules.items():
        targets = {name if name in modules else name.rpartition(".")[0] for name in imports(path)}
        edges[module] = (targets & set(modules)) - {module}
    return edges


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected components of more than one node (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    components: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in edges.get(node, ()):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            at = stack.index(node)
            if len(stack) - at > 1:
                components.append(sorted(stack[at:]))
            del stack[at:]

    for node in edges:
        if node not in index:
            visit(node)
    return components


def package_of(module: str) -> str | None:
    """The package (or top-level file) of a module of the library: the first part behind `dfrot`."""
    parts = module.split(".")
    return parts[1] if parts[0] == "dfrot" and len(parts) > 1 else None


def test_no_circle_of_imports() -> None:
    """Neither between files nor between packages, imports inside functions included."""
    assert not circles(graph())
    packages: dict[str, set[str]] = {}
    for module, targets in graph().items():
        if (here := package_of(module)) is not None:
            packages.setdefault(here, set()).update(
                there for target in targets if (there := package_of(target)) not in (None, here)
            )
    assert not circles(packages)
    assert not circles(MAY_USE)


def test_a_planted_circle_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


def test_packages_import_only_what_the_table_allows() -> None:
    for module, targets in graph().items():
        if (here := package_of(module)) is None:
            continue
        assert here in PACKAGES or here in FILES, f"{module}: add it to PACKAGES with its duty"
        wrong = {there for target in targets if (there := package_of(target)) not in (None, here)} - MAY_USE.get(
            here, FILES
        )
        assert not wrong, f"{module} imports {sorted(wrong)}, which {here} may not"


def test_only_compat_imports_the_insides_of_transformers() -> None:
    """Others take public names from the package itself; what lies in its modules may move with every release."""
    for _, path in sources():
        for node in nodes(path):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            inside = [module for module in modules if module.startswith("transformers.")]
            assert not inside or name(path).startswith("dfrot/compat/"), f"{name(path)} imports {inside}"


def test_only_compat_reads_private_attributes_of_transformers() -> None:
    words = ("._attn_implementation", "._local_mapping", "._supports_sdpa", ".layer_class_to_replicate")
    for _, path in sources():
        if not name(path).startswith("dfrot/compat/"):
            text = path.read_text(encoding="utf-8")
            assert not any(word in text for word in words), name(path)


def test_one_door_per_dependency() -> None:
    for _, path in sources():
        for module in imports(path):
            for package, doors in DOORS.items():
                if module == package or module.startswith(package + "."):
                    assert name(path).startswith(doors or ("nowhere",)), f"{name(path)} imports {module}"


def _calls(path: Path) -> Iterator[str]:
    for node in nodes(path):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)


def test_the_library_neither_prints_nor_exits_nor_unpickles() -> None:
    forbidden = {"print", "input", "exit", "quit", "sys.exit", "os._exit", "eval", "exec", "torch.load", "torch.save"}
    for folder, path in sources():
        if folder != "cli/dfrot_cli":
            wrong = forbidden & set(_calls(path))
            assert not wrong, f"{name(path)} calls {sorted(wrong)}"


def test_only_show_prints() -> None:
    for folder, path in sources():
        if folder == "cli/dfrot_cli" and path.name != "show.py":
            assert not {"print", "click.echo", "click.secho"} & set(_calls(path)), name(path)


def test_the_library_does_not_read_the_environment() -> None:
    for folder, path in sources():
        if folder != "cli/dfrot_cli" and name(path) not in ENVIRONMENT:
            text = path.read_text(encoding="utf-8")
            assert "os.environ" not in text, name(path)
            assert "getenv" not in text, name(path)


def test_remote_code_is_never_allowed() -> None:
    for _, path in sources():
        assert "trust_remote_code=True" not in path.read_text(encoding="utf-8"), name(path)


def test_files_stay_small() -> None:
    tracked = [path for _, path in sources()] + sorted((ROOT / "tests").rglob("*.py"))
    long = {name(path): count for path in tracked if (count := len(path.read_text().splitlines())) > MAX_LINES}
    assert not long


def test_commands_stay_thin() -> None:
    for path in sorted((ROOT / "cli/dfrot_cli/commands").rglob("*.py")):
        assert len(path.read_text().splitlines()) <= 100, name(path)


def test_public_functions_have_docstrings_and_screens_hold_a_function() -> None:
    """Public: no name on the way to it begins with an underscore. 60 lines: what a screen holds."""

    def visit(node: ast.AST, public: bool, where: str) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                visible = public and not child.name.startswith("_")
                if visible and not ast.get_docstring(child):
                    yield f"{where}: {child.name} has no docstring"
                if not isinstance(child, ast.ClassDef) and (child.end_lineno or 0) - child.lineno >= 60:
                    yield f"{where}: {child.name} is longer than 60 lines"
                yield from visit(child, visible and isinstance(child, ast.ClassDef), where)
            else:
                yield from visit(child, public, where)

    faults = [fault for _, path in sources() for fault in visit(ast.parse(path.read_text()), True, name(path))]
    assert not faults


def test_no_two_classes_of_one_name() -> None:
    places: dict[str, list[str]] = {}
    for _, path in sources():
        for node in nodes(path):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(name(path))
    assert not {cls: paths for cls, paths in places.items() if len(paths) > 1}


def test_tests_mirror_the_packages() -> None:
    """Folders of tests are packages of the library, the command line, the kernels or, by name, what else is tested."""
    others = {"cli", "kernels", "core", "packaging", "docs", "contributing", "examples", "real"}
    folders = {path.name for path in (ROOT / "tests").iterdir() if any(path.glob("**/test_*.py"))}
    packages = {path.parent.name for path in (ROOT / "dfrot").glob("*/__init__.py")}
    assert folders - others <= packages
    assert packages <= folders


@pytest.mark.parametrize("folder", ["kernels", "cli", "tests", "recipes"])
def test_source_roots_are_not_packages(folder: str) -> None:
    assert not (ROOT / folder / "__init__.py").exists()
    spec = importlib.util.find_spec(folder)
    assert spec is None or spec.origin is None, f"{folder}/ became a package: {spec.origin}"


def python(code: str) -> str:
    """Output of a fresh interpreter outside the source tree."""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/", timeout=120)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_importing_the_library_is_light() -> None:
    loaded = set(python("import sys, dfrot; print(*sys.modules)").split())
    assert not {"transformers", "torch", "click", "rich", "scipy", "huggingface_hub"} & loaded


def test_reading_settings_needs_no_torch() -> None:
    modules = [module_name(path) for _, path in sources() if path.name == "settings.py"]
    loaded = set(python(f"import sys, {', '.join(modules)}; print(*sys.modules)").split())
    assert not {"torch", "transformers", "numpy", "scipy"} & loaded


def test_using_the_library_leaves_cuda_alone() -> None:
    code = """
import sys
import dfrot
from dfrot import Checkpoint, QuantScheme
import torch
print(QuantScheme.parse("w4a4kv4").name, torch.cuda.is_initialized(), "transformers" in sys.modules)
"""
    assert python(code).split() == ["w4a4kv4", "False", "False"]


def test_help_is_instant() -> None:
    code = "import sys; from dfrot_cli.main import main; main(['--help'], standalone_mode=False); print(*sys.modules)"
    loaded = set(python(code).split())
    assert not {"torch", "transformers", "rich", "numpy", "dfrot", "dfrot_cli.commands.rotate"} & loaded
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    python("from dfrot_cli.main import main; main(['--help'])")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # processor time, which a busy machine does not stretch; measured: 0.15 s, interpreter start included
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


def test_the_tree_names_no_machine() -> None:
    """Paths and hosts of whoever worked here have no place in the repository."""
    words = ["/work" + "/", "/root" + "/", "/home" + "/", "/opt" + "/py"]
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    for relative in tracked:
        path = ROOT / relative
        if path.suffix in {".py", ".md", ".toml", ".txt", ".yaml", ".cpp", ".h", ".cu", ""} and path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace")
            for word in words:
                assert word not in text, f"{relative} holds {word}"
