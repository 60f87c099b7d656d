"""Which implementation serves an op, and why."""

from __future__ import annotations

from dfrot_kernels import cuda, native, ops


def which(op: str, device: str = "cpu") -> tuple[str, str]:
    """(implementation, reason) for `torch.ops.dfq.<op>` on `device` (cpu, cuda)."""
    if op not in ops.SCHEMAS:
        raise ValueError(f"dfq::{op} does not exist; known: {', '.join(ops.SCHEMAS)}")
    if device == "cuda":
        served, reason = cuda.status()
        if served and op not in cuda.OPS:
            return "reference", f"no Triton kernel for {op}: plain torch"
        return ("triton" if served else "reference"), reason
    if device != "cpu":
        return "reference", f"no kernels for {device}: plain torch"
    if not native.active():
        return "reference", native.status()
    detail = "; float64 input, for exact fusing, in plain torch" if op == "hadamard" else ""
    return f"native-{native.isa()}", native.status() + detail


CALLS = ("decoder blocks", "draft pass")  # that are no operators: whole_blocks/; modules are their reference


def report(device: str = "cpu") -> list[dict[str, str]]:
    """One row per op for `dfq doctor`, and on the CPU one per native call that is none."""
    rows = []
    for op in ops.SCHEMAS:
        implementation, reason = which(op, device)
        rows.append({"op": op, "implementation": implementation, "reason": reason})
    for name in CALLS if device == "cpu" else ():
        implementation = f"native-{native.isa()}" if native.active() else "reference"
        rows.append({"op": name, "implementation": implementation, "reason": native.status()})
    return rows
