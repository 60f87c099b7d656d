"""The environments of engines: `make engines` sets them up, one folder each; nothing of them is looked for
elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from dfrot.errors import InputError

DRIVERS = Path(__file__).with_name("drivers")


@dataclass(frozen=True)
class RunnableEngine:
    """An engine that a driver can run."""

    name: str
    """What commands, tables and reports call it."""
    script: str
    """Its driver in `drivers/`."""
    formats: tuple[str, ...]
    """Export formats that it loads."""
    device: str = "cpu"
    """Where it runs here."""
    environment: str = ""
    """The folder of its environment; empty for its name."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of its loader."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of its process."""

    @property
    def driver(self) -> Path:
        """The file of its driver."""
        return DRIVERS / self.script


_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "DO_NOT_TRACK": "1"}
_VLLM = {
    **_OFFLINE,
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the model in the driver's process, so that its modules can be asked
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "TORCHDYNAMO_DISABLE": "1",
}
ENGINES: Mapping[str, RunnableEngine] = MappingProxyType(
    {
        engine.name: engine
        for engine in (
            RunnableEngine("vllm", "vllm_driver.py", ("compressed-tensors", "gptq"), variables=_VLLM),
            RunnableEngine(
                "transformers", "transformers_driver.py", ("compressed-tensors", "gptq"), variables=_OFFLINE
            ),
            RunnableEngine("llama.cpp", "llama_cpp_driver.py", ("gguf",)),
            RunnableEngine("gptqmodel", "transformers_driver.py", ("gptq",), variables=_OFFLINE),
        )
    }
)
"""Every engine that has a driver, by name."""
DRAFT_ENGINES: Mapping[str, RunnableEngine] = MappingProxyType(
    {
        engine.name: engine
        for engine in (
            RunnableEngine("vllm", "vllm_draft_driver.py", ("speculators",), variables=_VLLM),
            RunnableEngine("llama.cpp", "llama_cpp_draft_driver.py", ("gguf",), environment="xllamacpp"),
        )
    }
)
"""Every engine that has a driver for drafts, by name, with the draft formats that it loads."""


@dataclass(frozen=True)
class EngineEnvironment:
    """An engine that is set up."""

    engine: RunnableEngine
    """Which."""
    python: Path
    """The interpreter of its environment."""


def engine_of(name: str, engines: Mapping[str, RunnableEngine]) -> RunnableEngine:
    """An engine by its name. Raises InputError that names those there are."""
    if name not in engines:
        raise InputError(f"`engine={name}`: no such engine; choose of {', '.join(engines)}", field="engine")
    return engines[name]


def find_environments(
    folder: Path, names: Sequence[str] = (), engines: Mapping[str, RunnableEngine] | None = None
) -> dict[str, EngineEnvironment | None]:
    """The environment of each engine below `folder`, None where it is not set up. names: empty for all.
    engines: those there are; None for ENGINES.

    Raises InputError for an unknown name."""
    there = ENGINES if engines is None else engines
    environments: dict[str, EngineEnvironment | None] = {}
    for name in names or there:
        engine = engine_of(name, there)
        python = folder / (engine.environment or name) / "bin" / "python"
        ready = python.is_file() and (python.parent.parent / "installed.txt").is_file()
        environments[name] = EngineEnvironment(engine, python.absolute()) if ready else None
    return environments
