"""dfq doctor: what this machine runs, and why."""

from __future__ import annotations

from dfrot_cli import show
from dfrot_cli.grouped_help import dfq_command
from dfrot_cli.options import Common, common


@dfq_command("doctor")
@common
def command(common: Common) -> None:
    """Show versions, processor and, for every operator, which implementation serves it and why."""
    common.prepare(cuda=True)
    import platform

    import psutil
    import torch

    from dfrot.stage_folder import versions
    from dfrot_kernels import cuda
    from dfrot_kernels.which import report

    served, why = cuda.status()
    machine = {
        "processor": f"{psutil.cpu_count(logical=False)} cores, {torch.get_num_threads()} threads, "
        f"{torch.backends.cpu.get_cpu_capability()}, {platform.machine()}",
        "memory": f"{show.size(psutil.virtual_memory().available)} free of {show.size(psutil.virtual_memory().total)}",
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "cuda kernels": ", ".join(cuda.OPS) + f" ({why})" if served else why,
    }
    operators = report()
    if common.json:
        show.as_json({"versions": versions(), "machine": machine, "operators": operators})
        return
    show.facts("dfq doctor", {**versions(), **machine})
    rows = [(row["op"], row["implementation"], row["reason"]) for row in operators]
    show.table("", ("operator", "implementation", "reason"), rows)
