"""What --device names: one device, or several, each of which gets a process."""

from __future__ import annotations

from dfrot.stages.evaluate.settings import DEVICE

AUTO = "auto"


def devices_of(text: str) -> list[str]:
    """The devices that `cpu`, `cuda`, `cuda:N` or several of them with commas name. Raises InputError for others."""
    from dfrot.errors import InputError

    names = [name.strip() for name in text.split(",")]
    for name in names:
        if not DEVICE.fullmatch(name):
            raise InputError(f"`device={text}`: {name!r} is no device; give cpu, cuda, cuda:N or auto", field="device")
        if len(names) > 1 and (name == "cuda" or (name != "cpu" and names.count(name) > 1)):
            raise InputError(f"`device={text}`: say which, each once: cuda:0,cuda:1", field="device")
    return names


def every_device() -> str:
    """What `auto` means here: all CUDA devices, or the processor where there is none."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return ",".join(f"cuda:{number}" for number in range(count)) or "cpu"


def require_devices(names: list[str]) -> None:
    """Raise ResourceError for a device that this machine lacks."""
    cuda = [name for name in names if name != "cpu"]
    if not cuda:
        return
    import torch

    from dfrot.errors import ResourceError

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for name in cuda:
        if not count:
            raise ResourceError(
                f"`device={name}`: no usable CUDA device on this machine; use `device=cpu`", field="device"
            )
        if int(name.partition(":")[2] or 0) >= count:
            raise ResourceError(
                f"`device={name}`: this machine has cuda:0 to cuda:{count - 1}; name one of these", field="device"
            )
