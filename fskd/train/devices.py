"""From runtime settings to a Fabric: device, processes and precision."""

import os
import warnings
from typing import TYPE_CHECKING

import torch

from fskd.config import Runtime
from fskd.errors import SettingError

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def launch(runtime: Runtime) -> "Fabric":
    """A launched Fabric. Under ``torchrun`` the number of processes is torchrun's.

    Raises:
        SettingError: If the device is unknown or not there.
    """
    from lightning_fabric import Fabric  # takes seconds, and a sweep only looks for devices

    accelerator, devices = find_devices(runtime)
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 0)) or runtime.devices
    several = processes > 1
    with warnings.catch_warnings():
        # Fabric advises on matters (idle GPUs, float32 precision) that the settings decide.
        warnings.simplefilter("ignore")
        fabric = Fabric(
            accelerator=accelerator,
            devices=processes if several else devices,
            # Some steps leave adapters unused, for example without real rows.
            strategy="ddp_find_unused_parameters_true" if several else "auto",
            precision=runtime.precision,
        )
        if several:
            fabric.launch()
    return fabric


def find_devices(runtime: Runtime) -> tuple[str, int | list[int]]:
    """``cpu`` or ``cuda``, and how many of them or which.

    Raises:
        SettingError: If the device is unknown or not there.
    """
    name, _, number = runtime.device.partition(":")
    accepted = "auto, cpu, cuda or cuda:N"
    if name not in ("auto", "cpu", "cuda") or (number and not number.isdigit()):
        raise SettingError("device", f"'{runtime.device}'", accepted)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        if number:
            raise SettingError("device", f"'{runtime.device}'", accepted)
        return "cpu", runtime.devices
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        raise SettingError(
            "device", f"'{runtime.device}'", "auto or cpu: there is no CUDA GPU here"
        )
    if runtime.devices > count or (number and int(number) >= count):
        raise SettingError("device", f"'{runtime.device}'", f"one of the {count} CUDA GPUs here")
    return "cuda", [int(number)] if number else runtime.devices
