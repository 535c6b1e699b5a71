"""Choose device, precision, attention kernel and CUDA graphs for this machine, each with a reason."""

import importlib.util
import os
import resource
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

GB = 1e9


@dataclass(frozen=True)
class Device:
    """The device, precision, attention kernel and use of CUDA graphs. Printing shows the reason for each."""

    device: torch.device
    precision: str  # no, fp16 or bf16, as accelerate names it
    attention: str  # sdpa or xformers
    reasons: tuple[str, ...]
    captures: bool = False  # whether CUDA graphs are recorded

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of frozen weights and activations."""
        return {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[self.precision]

    def autocast(self) -> AbstractContextManager:
        """Return a torch.autocast context for the precision, or a null context for float32."""
        if self.precision == "no":
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def __str__(self) -> str:
        return "\n".join(self.reasons)


def pick_device(
    mixed_precision: str = "auto", attention: str = "auto", capture: str = "auto"
) -> Device:
    """Choose device, precision, attention kernel and use of CUDA graphs for this machine."""
    device, why_device = _device()
    precision, why_precision = _precision(device, mixed_precision)
    kernel, why_kernel = _attention(device, attention)
    captures, why_captures = _capture(device, capture)
    reasons = (why_device, why_precision, why_kernel, why_captures)
    return Device(device, precision, kernel, reasons, captures)


def _device() -> tuple[torch.device, str]:
    if not torch.cuda.is_available():
        return torch.device("cpu"), f"cpu: no GPU here, {os.cpu_count()} cores"
    name, memory = torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory
    return torch.device("cuda"), f"cuda: {name} with {memory / GB:.0f} GB"


def _precision(device: torch.device, wanted: str) -> tuple[str, str]:
    if device.type == "cpu":
        return "no", "fp32: a CPU gains nothing from half precision"
    major, minor = torch.cuda.get_device_capability()
    has_bf16 = major >= 8  # is_bf16_supported() says yes where it is only emulated
    if wanted == "auto":
        wanted = "bf16" if has_bf16 else "fp16"
    if wanted == "bf16" and not has_bf16:
        return "fp16", f"fp16: compute capability {major}.{minor} has no bf16"
    return wanted, f"{wanted}: compute capability {major}.{minor}"


def _attention(device: torch.device, wanted: str) -> tuple[str, str]:
    if wanted == "sdpa" or device.type == "cpu":
        why = "asked for" if wanted == "sdpa" else "no GPU"
        return "sdpa", f"sdpa: PyTorch's own attention ({why})"
    if what := _fault_of_xformers(device):
        return "sdpa", f"sdpa: xformers {what}"
    if wanted == "auto":
        return "sdpa", "sdpa: runs the same kernels as xformers, which is installed"
    return "xformers", "xformers: asked for, and it runs here"


def _capture(device: torch.device, wanted: str) -> tuple[bool, str]:
    if wanted == "off":
        return False, "capture off: asked for"
    if device.type == "cpu":
        return False, "capture off: CUDA graphs need a GPU"
    if (processes := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        return False, f"capture off: {processes} processes train together"
    return True, "capture on: a step's kernels are recorded once and replayed as a CUDA graph"


def _fault_of_xformers(device: torch.device) -> str:
    """Return why xformers cannot be used here, or "" after a successful forward and backward pass."""
    try:
        if importlib.util.find_spec("xformers") is None:
            return "is not installed"
        import xformers.ops

        query = torch.zeros(1, 8, 1, 160, device=device, dtype=torch.float16, requires_grad=True)
        attended = xformers.ops.memory_efficient_attention(query, query, query)
        if torch.is_tensor(attended):
            attended.sum().backward()
    except Exception as error:  # a foreign build fails in its own ways
        return f"does not run here ({str(error).strip().split(chr(10))[0] or type(error).__name__})"
    return ""


def memory_gb() -> float:
    """Return this process's memory in GB: reserved GPU memory, or the peak of main memory without a GPU."""
    if torch.cuda.is_available():
        return torch.cuda.memory_reserved() / GB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GB
