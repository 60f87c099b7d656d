"""`dfq export --for ENGINE`: which format to write for an engine, and what must be said about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dfrot.errors import InputError, UnsupportedError
from dfrot.export.fit import target_of
from dfrot.export.serving.command import KV_FLAG, ServedFolder, takes_kv_flag
from dfrot.export.serving.definition import read_declaration
from dfrot.export.serving.promises import DECLARED, PREFERENCES, WEIGHTS_ONLY, Promise, promise
from dfrot.export.source import ExportSource, ReadSource, fit_source, read_source
from dfrot.quant.scheme import FULL, QuantScheme

DEVICES = ("cuda", "cpu")


@dataclass(frozen=True)
class ServingPlan:
    """What is written for an engine."""

    served: ServedFolder
    """What its command depends on."""
    to: str
    """The format."""
    scheme: QuantScheme
    """The scheme to declare."""
    why: str
    """Why this format, in a line."""
    warnings: tuple[str, ...] = ()
    """Where the engine serves something else than the checkpoint says, and what mends it."""


@dataclass(frozen=True)
class _FormatChoice:
    """A format that holds the checkpoint, and what the engine makes of it on each device."""

    to: str
    source: ExportSource
    promises: Mapping[str, Promise | None]

    @property
    def rank(self) -> int:
        """The smaller, the better: as declared, with a flag, in other bits, not at all."""
        known = [found for found in self.promises.values() if found is not None]
        if any(found.served == DECLARED for found in known):
            return 0
        if any(found.flag for found in known):
            return 1
        return 2 if any(found.served == WEIGHTS_ONLY for found in known) else 3


def plan_for(
    model: Path,
    engine: str,
    to: str | None = None,
    scheme: QuantScheme | None = None,
    *,
    online_r4: bool = False,
    force: bool = False,
) -> ServingPlan:
    """The format in which `engine` serves `model` best.

    Args:
        model: folder of a dfq checkpoint, or of a 16-bit one.
        engine: one of `promises.PREFERENCES`.
        to: write this format whatever would be better.
        scheme: the scheme to declare; None: the checkpoint's, its KV cache left to the engine.
        online_r4: write R4 as an online transform.
        force: write what the engine is known to refuse, too.

    Raises UnsupportedError where no format of the engine holds the checkpoint, or none is served."""
    if engine not in PREFERENCES:
        raise InputError(f"`engine={engine}`: unknown; choose of {', '.join(PREFERENCES)}", field="engine")
    source = read_source(model)
    own = source.config.scheme if source.config is not None else None
    declared = scheme or (_without_kv(own) if own is not None else None)
    candidates = _candidates(source, engine, to, declared, online_r4)
    best = min(candidates, key=lambda candidate: candidate.rank)
    if best.rank == 3 and not force:
        raise UnsupportedError(
            f"{model}: {engine} does not serve {best.source.scheme.name} from {best.to}: {_reason(best)}; "
            f"`force` writes it all the same",
            field="force",
        )
    kv_bits = own.kv_bits if own is not None and scheme is None else FULL
    flags = tuple(dict.fromkeys(found.flag for found in best.promises.values() if found is not None and found.flag))
    storage = best.source.storage.name if best.source.storage is not None else "dense"
    served = ServedFolder(engine, best.to, best.source.scheme.name, storage, kv_bits, flags)
    return ServingPlan(served, best.to, best.source.scheme, _why(best, candidates), _warnings(best, engine, kv_bits))


def _without_kv(scheme: QuantScheme) -> QuantScheme:
    """The scheme with the KV cache left to the engine: no format holds it, engines have a flag."""
    return replace(scheme, kv_bits=FULL, kv_sym=False, kv_clip=1.0)


def _candidates(
    source: ReadSource, engine: str, to: str | None, scheme: QuantScheme | None, online_r4: bool
) -> list[_FormatChoice]:
    """The engine's formats that hold the checkpoint. Raises the refusal of the first where none does."""
    names = PREFERENCES[engine]
    if to is not None and to not in names:
        raise UnsupportedError(f"`to={to}`: {engine} loads {' and '.join(names)}", field="to")
    candidates: list[_FormatChoice] = []
    refusals: list[UnsupportedError] = []
    for name in (to,) if to is not None else names:
        try:
            fitted = fit_source(source, target_of(name), scheme, online_r4 and target_of(name).online_r4)
        except UnsupportedError as error:
            refusals.append(error)
            continue
        candidates.append(_FormatChoice(name, fitted, {device: _promise(engine, fitted, device) for device in DEVICES}))
    if not candidates:
        raise refusals[0]
    return candidates


def _promise(engine: str, source: ExportSource, device: str) -> Promise | None:
    storage = source.storage.name if source.storage is not None else "dense"
    scheme = source.scheme
    return promise(engine, storage, scheme.w_bits, scheme.w_sym, scheme.a_bits, source.r4 is not None, device)


def _reason(candidate: _FormatChoice) -> str:
    known = [found.note for found in candidate.promises.values() if found is not None]
    return next((note for note in known if note), "nothing is known of it")


def _why(best: _FormatChoice, candidates: list[_FormatChoice]) -> str:
    others = [candidate.to for candidate in candidates if candidate is not best]
    return best.to + (f" rather than {' or '.join(others)}" if others else ", the one format it loads this from")


def _warnings(best: _FormatChoice, engine: str, kv_bits: int) -> tuple[str, ...]:
    """What the engine does otherwise than the checkpoint says, per device, and the flag that mends it."""
    warnings: list[str] = []
    promises = best.promises
    same = promises["cuda"] == promises["cpu"]
    for device, known in promises.items():
        where = f"{engine}" if same else f"{engine} on {device}"
        if known is None:
            text = (
                f"{where}: nothing is known of {best.source.scheme.name} as {best.to}; check it with dfq export `check`"
            )
        elif known.served == DECLARED:
            text = f"{where}: {known.note}" if known.note else ""
        else:
            word = known.served.format(w=best.source.scheme.w_bits)
            mend = f"; {known.flag} mends it" if known.flag else ""
            verb = "refuses it" if word == "refused" else f"serves it {word}"
            text = f"{where} {verb}" + (f" ({known.note})" if known.note else "") + mend
        if text and text not in warnings:
            warnings.append(text)
    if kv_bits != FULL:
        text = f"{engine} keeps the KV cache in 16 bits, the checkpoint in {kv_bits}"
        warnings.append(text + (f"; on cuda {KV_FLAG} keeps it in 4" if takes_kv_flag(engine, kv_bits) else ""))
    return tuple(warnings)


def engines_for(folder: Path) -> tuple[ServedFolder, ...]:
    """The servers, of vLLM and SGLang, that serve an exported folder as it declares on CUDA, a flag included, or of
    which nothing is known. Raises UnsupportedError for a folder that is no export."""
    declared = read_declaration(folder)
    served = []
    for engine in ("vllm", "sglang"):
        facts = (declared.storage, declared.w_bits, declared.w_sym, declared.a_bits, declared.r4_block > 0)
        known = promise(engine, *facts)
        if known is None or known.served == DECLARED or known.flag:
            flags = (known.flag,) if known is not None and known.flag else ()
            served.append(ServedFolder(engine, declared.method, declared.name, declared.storage, FULL, flags))
    return tuple(served)


def record_of(plan: ServingPlan, command: str) -> dict[str, Any]:
    """The entry `serving` of an export's record."""
    return {"engine": plan.served.engine, "command": command, "why": plan.why, "warnings": list(plan.warnings)}
