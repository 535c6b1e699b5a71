"""Capture functions as CUDA graphs: the kernels are recorded once and replayed, so the GPU never waits for Python.

A micro-step of Stable Diffusion v1's UNet launches thousands of kernels, and Python takes longer to launch most of
them than the GPU takes to run them. A CUDA graph launches all of them at once (PyTorch's notes on CUDA semantics, "CUDA
Graphs", https://docs.pytorch.org/docs/stable/notes/cuda.html).
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)


class CudaGraphs:
    """A recorder of CUDA graphs that share one memory pool. Two of the graphs must never run at the same time."""

    def __init__(self) -> None:
        self.pool, self.stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()

    def warm_up(self, function: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> Tensor:
        """Run a function once on the recording stream, and return the result. Autograd then knows that stream."""
        torch.cuda.empty_cache()  # freed blocks belong to a stream, and this one cannot reuse the others'
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            result = function(*inputs)
        torch.cuda.current_stream().wait_stream(self.stream)
        return result

    def record(
        self, function: Callable[..., Tensor], inputs: tuple[Tensor, ...]
    ) -> Callable[[], Tensor]:
        """Record a function as a CUDA graph without running it, and return a callable that replays the graph.

        Other threads may use the GPU meanwhile.
        """
        graph = torch.cuda.CUDAGraph()
        mode = {"stream": self.stream, "capture_error_mode": "thread_local"}
        with torch.cuda.graph(graph, pool=self.pool, **mode):
            result = function(*inputs)

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay


@lru_cache(maxsize=1)
def _shared_graphs() -> CudaGraphs:
    """Return the one CudaGraphs of this process, so that all its graphs share one memory pool."""
    return CudaGraphs()


class Captured:
    """A function of tensors that is replayed as a CUDA graph from its second call per input shape on.

    The function must return a tensor, read no tensor's value in Python, and write anything else to the same address
    at each call. If it cannot be captured, it runs uncaptured and a warning says why.
    """

    def __init__(
        self, function: Callable[..., Tensor], name: str, recorder: CudaGraphs | None = None
    ) -> None:
        self.function, self.name = function, name  # the name is for the warning
        self.recorder = recorder or _shared_graphs()
        # by input shapes: buffers for the inputs, and the replay; None after the first call
        self.recorded: dict[tuple, tuple[tuple[Tensor, ...], Callable[[], Tensor]] | None] = {}
        self.failed = False

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Return the function's result for `inputs`, in a new tensor."""
        shape = tuple((tensor.shape, tensor.dtype) for tensor in inputs)
        if self.failed:
            return self.function(*inputs)
        if shape not in self.recorded:
            self.recorded[shape] = None
            return self.recorder.warm_up(self.function, inputs)
        if self.recorded[shape] is None and not self._record(shape, inputs):
            return self.function(*inputs)
        static, replay = self.recorded[shape]
        for buffer, tensor in zip(static, inputs, strict=True):
            buffer.copy_(tensor, non_blocking=True)
        return replay().clone()

    def release(self) -> None:
        """Free the graphs and their memory; a later call captures again."""
        self.recorded.clear()

    def _record(self, shape: tuple, inputs: tuple[Tensor, ...]) -> bool:
        static = tuple(tensor.clone() for tensor in inputs)
        try:
            self.recorded[shape] = static, self.recorder.record(self.function, static)
        except RuntimeError as error:  # a kernel that cannot be captured, or out of memory
            self.failed = True
            self.recorded.clear()
            reason = str(error).strip().split("\n")[0]
            log.warning("%s is not captured (%s): it continues, more slowly", self.name, reason)
        return not self.failed


class CapturedForward:
    """The forward pass of a UNet as a CUDA graph, for a pipeline that calls the UNet at every sampling step."""

    def __init__(self, unet: nn.Module, recorder: CudaGraphs | None = None) -> None:
        self.unet, self.recorder = unet, recorder
        self.addresses: list[int] = []

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Make the UNet use its captured forward pass inside this context.

        Weights may change in between; if a weight has moved to another address, the forward pass is captured again.
        """
        addresses = [tensor.data_ptr() for tensor in self.unet.state_dict().values()]
        if addresses != self.addresses:
            self.addresses = addresses
            self.captured = Captured(self._forward, "drawing", self.recorder)
        patched = vars(self.unet).get("forward")  # accelerate sets one, for autocast
        self.eager, self.unet.forward = self.unet.forward, self._call
        try:
            yield
        finally:
            del self.unet.forward
            if patched is not None:
                self.unet.forward = patched

    def _call(
        self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, **others: Any
    ) -> tuple[Tensor]:
        """Call the UNet as a CUDA graph, or uncaptured if the pipeline passes further arguments."""
        given = {name: value for name, value in others.items() if value is not None}
        if set(given) - {"return_dict"}:
            return self.eager(sample, timestep, encoder_hidden_states, **others)
        return (self.captured(sample, timestep, encoder_hidden_states),)

    def _forward(self, sample: Tensor, timestep: Tensor, texts: Tensor) -> Tensor:
        kind = sample.device.type
        with torch.autocast(
            kind, enabled=torch.is_autocast_enabled(kind), cache_enabled=False
        ):  # its cache would keep half-precision weights as long as the graph
            return self.eager(sample, timestep, encoder_hidden_states=texts, return_dict=False)[0]
