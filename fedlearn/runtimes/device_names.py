"""Which devices a run uses: what `runtime.devices` says, resolved on this machine."""

import re
from collections.abc import Sequence

import torch

from fedlearn.config.errors import among

AUTO = "auto"
NAMES = (AUTO, "cpu", "cuda", "cuda:N")

_NAME = re.compile(r"cpu|cuda(:\d+)?")


def resolve(named: str | Sequence[str], executor: str, *, several: bool) -> list[torch.device]:
    """Return the devices, the one of the server's model first.

    Args:
        named: ``"auto"``, or names as a list or parted by commas: ``"cpu"``, or CUDA devices that
            this process sees, each once.
        executor: What executes clients there, for messages.
        several: Whether it uses more than one: ``"auto"`` then stands for all CUDA devices, and
            for the first one otherwise; for the CPU where there is none.

    Raises:
        ValueError: They cannot be used.
    """
    names = [name.strip() for name in (named.split(",") if isinstance(named, str) else named)]
    told = f"runtime.devices={','.join(names) or '[]'}"
    count = torch.cuda.device_count()
    if names == [AUTO]:
        found = [torch.device("cuda", index) for index in range(count)]
        return found[: None if several else 1] or [torch.device("cpu")]
    if not any(names):
        raise ValueError(f"{told}: must name at least one; choices: {', '.join(NAMES)}")
    for name in names:
        if name == AUTO:
            raise ValueError(f"{told}: auto stands for all there are; name no other beside it")
        if not _NAME.fullmatch(name):
            which = f"{told}: " if len(names) == 1 else f"{told}: {name} is "
            raise ValueError(f"{which}unknown{among(name, NAMES)}")
    devices = [torch.device(f"{name}:0" if name == "cuda" else name) for name in names]
    if len({device.type for device in devices}) > 1:
        raise ValueError(f"{told}: cpu and cuda do not go together; take one or the other")
    for at, device in enumerate(devices):
        if device in devices[:at]:
            raise ValueError(f"{told}: {device} comes twice; name each device once")
    if len(devices) > 1 and not several:
        raise ValueError(
            f"{told}: several devices are for runtime.executor=vectorized, and it is {executor}; "
            "take one of them"
        )
    if any(device.type == "cuda" and device.index >= count for device in devices):
        there = f"has {count} CUDA device{'s' if count != 1 else ''}"
        sees = ", ".join([AUTO, "cpu", *(f"cuda:{index}" for index in range(count))])
        raise ValueError(f"{told}: this machine {there}; choices: {sees}")
    return devices
