"""What the machine can do: device, number format, profile, and how much memory a training step needs."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import dataclasses
import functools
import math
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from ctseg.errors import UsageError
from ctseg.runtime import cpu_bfloat16

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # of mallopt


@dataclasses.dataclass(frozen=True)
class Machine:
    """The chosen device and number format, and why."""

    device: torch.device
    precision: str  # fp32 | bf16 | fp16
    channels_last: bool
    reason: str

    def autocast(self) -> contextlib.AbstractContextManager:
        """The context in which the network runs."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float16
        return torch.autocast(self.device.type, dtype)

    def place(self, network: nn.Module) -> nn.Module:
        """The network on the device, in the memory format that is fast there."""
        network = network.to(self.device)
        if self.channels_last:
            network = network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        if self.device.type == "cpu" and self.precision == "fp32":
            for layer in network.modules():
                if type(layer) is nn.Conv3d and layer.groups == 1 and max(layer.kernel_size) == 3:
                    layer.__class__ = DoubledConv3d
        if self.device.type == "cpu" and self.precision == "bf16":
            cpu_bfloat16.guard(network)
        return network

    def image(self, batch: torch.Tensor) -> torch.Tensor:
        """A batch of images (B, 1, D, H, W) on the device in the network's memory format."""
        batch = batch.to(self.device, non_blocking=True)
        return batch.contiguous(memory_format=torch.channels_last_3d) if self.channels_last else batch


SLOW_BELOW = 20480  # C D H of an input, see ATen's use_mkldnn


class DoubledConv3d(nn.Conv3d):
    """A float32 convolution that takes the fast way on a CPU for small single images too.

    torch gives a 3^3 convolution of one image with C D H of up to SLOW_BELOW to a general routine that takes
    5 to 8 times as long as two such images in one batch take; so these are computed twice and one result is
    used.
    """

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        small = image[0, :, :, :, 0].numel() <= SLOW_BELOW
        if len(image) > 1 or image.dtype != torch.float32 or not small:
            return super().forward(image)
        return super().forward(image.expand(2, *image.shape[1:]))[:1]


def choose_device(name: str) -> torch.device:
    """The device of --device; UsageError NO_GPU when the one asked for is not there."""
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device("cuda" if available["cuda"] else "mps" if available["mps"] else "cpu")
    if not available.get(name, False):
        raise UsageError(
            "NO_GPU",
            f"--device {name} was asked for, but this machine or this torch build has none",
            "use --device auto or cpu",
        )
    return torch.device(name)


def choose_machine(device_name: str, precision: str) -> Machine:
    """Device and number format. On CPUs a one-second probe decides between float32 and bfloat16."""
    device = choose_device(device_name)
    if device.type == "cuda":
        # channels_last_3d is slower with InstanceNorm on CUDA (pytorch issue 59168); so is emulated bfloat16
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        chosen = precision if precision != "auto" else ("bf16" if has_bf16 else "fp16")
        return Machine(device, chosen, False, f"GPU {torch.cuda.get_device_name(device)}, {chosen}")
    if device.type == "mps":
        return Machine(device, "fp32" if precision == "auto" else precision, False, "Apple GPU, float32")
    if precision == "fp16":
        raise UsageError("BAD_VALUE", "train.precision=fp16 needs a GPU", "use auto, fp32 or bf16")
    why = "as asked"
    if precision == "auto":
        precision = "bf16" if _bf16_gain() > 1.3 else "fp32"
        why = f"(bfloat16 {'was' if precision == 'bf16' else 'was not'} faster in a short trial)"
    return Machine(device, precision, True, f"CPU, {torch.get_num_threads()} threads, {precision} {why}")


@functools.cache
def _bf16_gain() -> float:
    """How many times faster training a 3D convolution is in bfloat16 than in float32 on this CPU; measured
    once per process.

    Forward and backward: without bfloat16 instructions the forward pass alone may look as fast while the
    backward pass takes several times as long. Processor time, in turn, the best of three: other programs on
    the machine must not decide. Thirty-two channels, because with sixteen the gain is smaller than that of a
    whole network and the trial came out both ways on one machine.
    """
    layer = nn.Conv3d(32, 32, 3, padding=1)
    layer = layer.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    image = torch.rand(1, 32, 32, 32, 32).contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    seconds: dict[bool, list[float]] = {False: [], True: []}
    with torch.enable_grad():
        for number in range(4):
            for rough, times in seconds.items():
                start = time.process_time()
                with torch.autocast("cpu", torch.bfloat16, enabled=rough):
                    layer(image).float().square().mean().backward()
                if number:  # the first one sets things up
                    times.append(time.process_time() - start)
    return min(seconds[False]) / min(seconds[True])


def choose_profile(device: torch.device) -> tuple[str, str]:
    """(profile, reason) for a device when the user named none."""
    if device.type == "cuda":
        gigabytes = torch.cuda.get_device_properties(device).total_memory / 2**30
        name = "low_vram" if gigabytes < 8 else "standard" if gigabytes < 20 else "full"
        return name, f"the GPU has {gigabytes:.0f} GB"
    if device.type == "mps":
        return "low_vram", "Apple GPUs share the machine's memory"
    return "cpu", "there is no GPU"


def available_memory_gb(device: torch.device) -> float:
    """Free memory of the device in GB (RAM that is available for a CPU)."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / 2**30
    return psutil.virtual_memory().available / 2**30


@contextlib.contextmanager
def freed_memory_kept() -> Iterator[None]:
    """While entered, memory that is freed stays with the process (glibc; elsewhere nothing happens).

    A training step takes and frees hundreds of MB in large pieces, which glibc hands back to the system each
    time, and the system zeroes anew: 35,000 page faults, a sixth to a quarter of a step on two cores
    (docs/decisions/019-half-size.md). Afterwards the largest that glibc reaches by itself is set.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    mallopt = getattr(libc, "mallopt", None)
    if mallopt is None:
        yield
        return
    try:
        for option, value in ((M_MMAP_THRESHOLD, 1 << 30), (M_TRIM_THRESHOLD, -1), (M_TOP_PAD, 1 << 28)):
            mallopt(option, value)
        yield
    finally:
        for option, value in (
            (M_MMAP_THRESHOLD, 32 << 20),
            (M_TRIM_THRESHOLD, 64 << 20),
            (M_TOP_PAD, 1 << 17),
        ):
            mallopt(option, value)
        libc.malloc_trim(0)  # type: ignore[union-attr]


def count_parameters(network: nn.Module) -> int:
    """How many numbers a network learns."""
    return sum(parameter.numel() for parameter in network.parameters())


def estimate_memory_gb(
    network: nn.Module, patch_size: tuple[int, int, int], batch_size: int, machine: Machine
) -> float:
    """Memory in GB that a training step needs: activations kept for the backward pass, weights, optimizer
    state.

    Measured on a 32^3 patch (saved tensors of one forward pass of a copy, so that the network stays as it is)
    and scaled by the number of voxels.
    """
    probe = (32, 32, 32)
    saved: dict[int, int] = {}

    def remember(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    copied = copy.deepcopy(network).to(machine.device).train()
    weights = {p.untyped_storage().data_ptr() for p in copied.parameters()}
    inputs = {}
    if "guide" in getattr(copied, "inputs", ()):
        channels: Any = copied.guide_channels
        inputs["guide"] = machine.image(torch.zeros(1, channels, *probe))
    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor), machine.autocast():
        outputs = copied(machine.image(torch.zeros(1, 1, *probe)), **inputs)
    outputs_bytes = 3 * outputs["logits"].numel() * 4  # the loss works in float32
    per_patch = sum(size for pointer, size in saved.items() if pointer not in weights) + outputs_bytes
    share = math.prod(patch_size) / math.prod(probe)
    return (per_patch * share * batch_size * 1.25 + 20 * count_parameters(copied)) / 2**30


def peak_memory_gb(device: torch.device) -> float:
    """The most memory that this process has used in GB: of the GPU, or resident in RAM.

    Where the system does not tell, what it uses now.
    """
    return round(_peak_bytes(device) / 2**30, 3)


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    memory = psutil.Process().memory_info()
    if hasattr(memory, "peak_wset"):  # Windows
        return int(memory.peak_wset)
    # Linux, where getrusage begins at what the process that started this one used
    status = Path("/proc/self/status")
    if status.is_file() and (found := re.search(r"^VmHWM:\s*(\d+) kB", status.read_text(), re.MULTILINE)):
        return int(found[1]) * 1024
    try:
        import resource
    except ImportError:
        return int(memory.rss)
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def usage(device: torch.device) -> dict[str, Any]:
    """One entry of `resource_usage` in the training history."""
    memory = psutil.virtual_memory()
    entry = {
        "cpu_percent": float(psutil.cpu_percent()),
        "ram_used_gb": round(psutil.Process().memory_info().rss / 2**30, 3),
        "ram_total_gb": round(memory.total / 2**30, 2),
    }
    if device.type == "cuda":
        entry["gpu_memory_gb"] = round(torch.cuda.max_memory_allocated(device) / 2**30, 3)
    return entry
