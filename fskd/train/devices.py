"""From runtime settings to device, processes and precision."""

import atexit
import os
import warnings

import torch

from fskd.config import Runtime
from fskd.errors import SettingError
from fskd.train.alone import Alone, AnyFabric


def launch(runtime: Runtime) -> AnyFabric:
    """Device and precision; a launched Fabric where there are several processes.

    Under ``torchrun`` the number of processes is torchrun's.

    Raises:
        SettingError: If the device is unknown or not there.
    """
    accelerator, devices = find_devices(runtime)
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 0)) or runtime.devices
    if processes == 1:
        device = torch.device("cpu")
        if accelerator == "cuda":
            device = torch.device("cuda", devices[0] if isinstance(devices, list) else 0)
            torch.cuda.set_device(device)
        return Alone(device, runtime.precision)
    from lightning_fabric import Fabric  # takes more than a second

    with warnings.catch_warnings():
        # Fabric advises on matters (idle GPUs, float32 precision) that the settings decide.
        warnings.simplefilter("ignore")
        fabric = Fabric(
            accelerator=accelerator,
            devices=processes,
            # Some steps leave adapters unused, for example without real rows.
            strategy="ddp_find_unused_parameters_true",
            precision=runtime.precision,
        )
        fabric.launch()
    # Fabric takes leave of NCCL only; gloo's threads may abort a process that ends around them.
    atexit.register(_leave)
    return fabric


def _leave() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


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
