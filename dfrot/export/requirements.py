"""What a checkpoint must satisfy to be exported to a target. Every refusal names what would work instead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from dfrot.errors import UnsupportedError
from dfrot.export.fit import table_storage, without_activations
from dfrot.export.targets import ExportTarget, Storage
from dfrot.quant.config import DfqConfig
from dfrot.quant.plan import LinearPlan
from dfrot.quant.scheme import FULL, QuantScheme
from dfrot.quant.table import TableScheme
from dfrot.rotation.online import HadamardSpec

DENSE = QuantScheme(FULL, FULL, FULL)


def requested_scheme(model: Path, config: DfqConfig | None, scheme: QuantScheme | None) -> QuantScheme:
    """The scheme to declare: the checkpoint's own, or `scheme` when its weights are the checkpoint's.

    Raises UnsupportedError for simulated checkpoints and for other weights."""
    if config is not None and config.fake:
        raise UnsupportedError(
            f"{model}: is a simulated checkpoint; quantize with `fake=False` to export integers", field="fake"
        )
    own = config.scheme if config is not None and config.scheme is not None else DENSE
    if scheme is None or scheme.name == own.name:
        return own
    if without_activations(scheme) != without_activations(own):
        action = "quantize the 16-bit checkpoint with it first" if own.w_bits == FULL else "quantize again with it"
        raise UnsupportedError(
            f"`scheme={scheme.name}`: the weights of {model} are {own.name}; {action} (dfq quantize)", field="scheme"
        )
    return scheme


def suggestion(instead: str | None, scheme: QuantScheme) -> str:
    """How to get from `scheme` to the scheme named `instead`. The text names the setting `scheme`."""
    assert instead is not None
    other = QuantScheme.parse(instead)
    if scheme.w_bits == FULL:
        return f"quantize it first (dfq quantize, `scheme={instead}`)"
    if without_activations(other) == without_activations(scheme):
        return f"export the same weights with `scheme={instead}`"
    return f"quantize again with `scheme={instead}`"


def check_runtime(
    model: Path, target: ExportTarget, config: DfqConfig | None, scheme: QuantScheme, online_r4: bool, notes: list[str]
) -> HadamardSpec | None:
    """Check what dfq's runtime computes besides integer products. Returns the online rotation R4 to write, if any.

    Raises UnsupportedError for what engines cannot compute; appends to `notes` what makes no difference."""
    if online_r4 and (config is None or config.online.r4 is None):
        raise UnsupportedError(
            f"`online_r4`: {model} has no online rotation R4; leave the option out", field="online_r4"
        )
    if config is None:
        return None
    engines = ", ".join(target.engines)
    if config.resets:
        raise UnsupportedError(
            f"{model}: resets massive activations while running, which {engines} cannot; rotate the original instead"
        )
    if config.sink_tokens and scheme.a_bits != FULL:
        raise UnsupportedError(
            f"{model}: keeps {config.sink_tokens} sink tokens exact, which {engines} cannot; quantize with "
            "`sink_tokens=0`",
            field="sink_tokens",
        )
    if config.a_bits and scheme.a_bits != FULL:
        raise UnsupportedError(
            f"{model}: reads the inputs of {len(config.a_bits)} linears in other bits than the rest, which no export "
            "holds yet; quantize without `budget`",
            field="budget",
        )
    if config.a_clips and scheme.a_bits != FULL:
        raise UnsupportedError(
            f"{model}: has activation clips per linear, which {engines} cannot; quantize without `a_clip` auto",
            field="a_clip",
        )
    if config.online.r3 is not None:
        notes.append("R3 is left out: without a quantized KV cache it cancels in every query-key product")
    if config.shifts_keys:
        notes.append("the key shift is left out: only dfq's quantized KV cache has it, and without one it cancels")
    if config.online.r4 is not None:
        _check_r4(model, target, config.online.r4, online_r4, engines)
        notes.append(
            "R4 is written as an online transform: vLLM applies it (tensor parallel 1, no bias), transformers ignores "
            "it and computes nonsense; ask other engines before relying on them"
        )
    return config.online.r4


def _check_r4(model: Path, target: ExportTarget, r4: HadamardSpec, online_r4: bool, engines: str) -> None:
    """Raise UnsupportedError unless the target can hold this R4 and it was asked for."""
    if not target.online_r4:
        raise UnsupportedError(
            f"{model}: expects the online rotation R4, which {engines} cannot apply; rotate with `online=False`",
            field="online",
        )
    if not online_r4:
        raise UnsupportedError(
            f"{model}: expects the online rotation R4, which transformers would skip in silence; rotate with "
            "`online=False`, or ask for it with `online_r4`",
            field=("online", "online_r4"),
        )
    if r4.bases:
        largest_power_of_two = r4.block & -r4.block
        raise UnsupportedError(
            f"{model}: R4 has blocks of {r4.block}, the format has powers of two only; rotate with "
            f"`r4_block={largest_power_of_two}`",
            field="r4_block",
        )


def check_tables(
    model: Path, target: ExportTarget, config: DfqConfig | None, scheme: QuantScheme
) -> dict[str, Storage]:
    """How the target keeps a quantized embedding (`embed`) and a head with a grid of its own (`head`).

    Raises UnsupportedError for what it cannot hold. A head on the grid of the blocks, without quantized activations,
    is a linear like others."""
    storages: dict[str, Storage] = {}
    for field in ("embed", "head"):
        table: TableScheme = getattr(config, field) if config is not None else TableScheme()
        if not table.quantized:
            continue
        if table.second_rows:
            raise UnsupportedError(
                f"{model}: its head has second rows for {table.second_rows} tokens, which no format holds; quantize "
                f"with `{field}={replace(table, second_rows=0).name}`",
                field=field,
            )
        grid = (table.bits, table.group, table.symmetric)
        like_blocks = grid == (scheme.w_bits, scheme.w_group, scheme.w_sym) and scheme.a_bits == FULL
        if field == "head" and not target.own_tables and like_blocks:
            continue
        storage = table_storage(target, table) if target.own_tables else f"{target.name} keeps it in 16 bits"
        if isinstance(storage, str):
            what = "embedding" if field == "embed" else "head"
            raise UnsupportedError(
                f"{model}: its {what} is quantized ({table.name}): {storage}; quantize with `{field}=16`", field=field
            )
        storages[field] = storage
    return storages


def check_linears(
    model: Path,
    target: ExportTarget,
    storages: Callable[[str], Storage | None],
    head: str,
    plans: dict[str, LinearPlan],
    kept: tuple[str, ...],
) -> None:
    """Check shapes and exceptions of single linears. `storages`: how one of them is kept; `plans`: the packed ones by
    full name; `head`: the head's name.

    Raises UnsupportedError naming the linear to keep in 16 bits."""
    if plans and not target.keeps_linears and (others := [name for name in kept if name != head]):
        raise UnsupportedError(
            f"{model}: keeps {others[0]} in 16 bits, {target.name} only the head; quantize with `keep={head}`",
            field="keep",
        )
    if head in plans and not target.quantized_head:
        raise UnsupportedError(
            f"{model}: its head is quantized, engines read {target.name} with a 16-bit head; quantize with "
            f"`keep={head}`",
            field="keep",
        )
    rows, cols = target.align
    for name, plan in plans.items():
        storage = storages(name)
        group = plan.group or (storage.block if storage is not None else 0)
        if plan.rows % rows or plan.cols % cols or (group and plan.cols % group):
            raise UnsupportedError(
                f"{model}: {name} is {plan.rows} x {plan.cols}; {target.name} needs multiples of {rows} x "
                f"{max(cols, group)}: quantize with `keep={name.rsplit('.', 1)[-1]}`"
                + ("" if target.keeps_linears else " and export to another format"),
                field="keep",
            )
