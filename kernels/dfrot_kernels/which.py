"""Which implementation serves an op, and why."""

from __future__ import annotations

from dfrot_kernels import native, ops


def which(op: str, device: str = "cpu") -> tuple[str, str]:
    """(implementation, reason) for `torch.ops.dfq.<op>` on `device` (cpu, cuda)."""
    if op not in ops.SCHEMAS:
        raise ValueError(f"dfq::{op} does not exist; known: {', '.join(ops.SCHEMAS)}")
    if device != "cpu":
        return "reference", f"no native kernel for {device} in this version: plain torch"
    if not native.active():
        return "reference", native.status()
    detail = "; float64 input, for exact fusing, in plain torch" if op == "hadamard" else ""
    return f"native-{native.isa()}", native.status() + detail


def report() -> list[dict[str, str]]:
    """One row per op for `dfq doctor`."""
    rows = []
    for op in ops.SCHEMAS:
        implementation, reason = which(op)
        rows.append({"op": op, "implementation": implementation, "reason": reason})
    return rows
