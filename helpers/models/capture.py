"""CUDA graphs: kernels are recorded once and replayed, so that the GPU does not wait for Python.

A micro-step of Stable Diffusion v1's UNet launches thousands of kernels, and launching one from Python takes longer
than most of them run. A CUDA graph launches all of them at once (PyTorch's notes on CUDA semantics, "CUDA Graphs",
https://docs.pytorch.org/docs/stable/notes/cuda.html).
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)


class Recorder(Protocol):
    """Records the kernels of a function whose tensors keep their addresses."""

    def warm_up(self, function: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> Tensor:
        """Run the function once, as it will be recorded."""

    def record(
        self, function: Callable[..., Tensor], inputs: tuple[Tensor, ...]
    ) -> Callable[[], Tensor]:
        """Record the function without running it; return a function that replays it and returns its result."""


class CudaGraphs:
    """Records into CUDA graphs that share one memory pool; no two of them run at the same time."""

    def __init__(self) -> None:
        self.pool, self.stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()

    def warm_up(self, function: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> Tensor:
        """Run the function on the recording stream, so that autograd's own state belongs to that stream."""
        torch.cuda.empty_cache()  # cached blocks belong to one stream
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            result = function(*inputs)
        torch.cuda.current_stream().wait_stream(self.stream)
        return result

    def record(
        self, function: Callable[..., Tensor], inputs: tuple[Tensor, ...]
    ) -> Callable[[], Tensor]:
        """Record the function into a graph; other threads may use the GPU meanwhile."""
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
    """The recorder of this process: all graphs share one memory pool, since they run one after another."""
    return CudaGraphs()


class Captured:
    """Wraps a function of tensors: the first call with a shape runs it, the second records it, later ones replay.

    The function returns a tensor, reads no tensor's value in Python, and writes side effects to the same addresses
    in each call. If it cannot be recorded, it is run without a graph and a warning gives the reason.
    """

    def __init__(
        self, function: Callable[..., Tensor], what: str, recorder: Recorder | None = None
    ) -> None:
        """`what` is the function's name in that warning, such as "the training step"."""
        self.function, self.what = function, what
        self.recorder = recorder or _shared_graphs()
        self.recorded: dict[tuple, tuple[tuple[Tensor, ...], Callable[[], Tensor]]] = {}
        self.warm: set[tuple] = set()
        self.failed = False

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Return the function's result for `inputs`, in a new tensor."""
        shape = tuple((tensor.shape, tensor.dtype) for tensor in inputs)
        if self.failed:
            return self.function(*inputs)
        if shape not in self.warm:
            self.warm.add(shape)
            return self.recorder.warm_up(self.function, inputs)
        if shape not in self.recorded and not self._record(shape, inputs):
            return self.function(*inputs)
        static, replay = self.recorded[shape]
        for own, given in zip(static, inputs, strict=True):
            own.copy_(given, non_blocking=True)
        return replay().clone()

    def release(self) -> None:
        """Free the graphs and their memory; a later call records again."""
        self.recorded.clear()
        self.warm.clear()

    def _record(self, shape: tuple, inputs: tuple[Tensor, ...]) -> bool:
        static = tuple(tensor.clone() for tensor in inputs)
        try:
            self.recorded[shape] = static, self.recorder.record(self.function, static)
        except RuntimeError as error:  # a kernel that cannot be captured, or out of memory
            self.failed = True
            self.recorded.clear()
            reason = str(error).strip().split("\n")[0]
            log.warning("%s is not captured (%s): it continues, more slowly", self.what, reason)
        return not self.failed


class CapturedForward:
    """The captured forward pass of a diffusers UNet, for pipelines that call it many times."""

    def __init__(self, unet: nn.Module, recorder: Recorder | None = None) -> None:
        self.unet, self.recorder = unet, recorder
        self.addresses: list[int] = []

    @contextmanager
    def installed(self) -> Iterator[None]:
        """A context in which the UNet uses it. Weights may change in between; if one has moved, it records again."""
        addresses = [tensor.data_ptr() for tensor in self.unet.state_dict().values()]
        if addresses != self.addresses:
            self.addresses = addresses
            self.captured = Captured(self._forward, "drawing", self.recorder)
        own = vars(self.unet).get("forward")  # accelerate sets one, for autocast
        self.eager, self.unet.forward = self.unet.forward, self._call
        try:
            yield
        finally:
            del self.unet.forward
            if own is not None:
                self.unet.forward = own

    def _call(
        self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, **others: Any
    ) -> tuple[Tensor]:
        """The UNet's forward as pipelines call it; arguments beside these three are None for Stable Diffusion v1."""
        given = {name: value for name, value in others.items() if value is not None}
        if set(given) - {"return_dict"}:
            return self.eager(sample, timestep, encoder_hidden_states, **others)
        return (self.captured(sample, timestep, encoder_hidden_states),)

    def _forward(self, sample: Tensor, timestep: Tensor, texts: Tensor) -> Tensor:
        kind = sample.device.type
        # autocast's cache would keep half-precision weights as long as the graph
        with torch.autocast(kind, enabled=torch.is_autocast_enabled(kind), cache_enabled=False):
            return self.eager(sample, timestep, encoder_hidden_states=texts, return_dict=False)[0]
