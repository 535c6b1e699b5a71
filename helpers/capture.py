"""Kernels recorded once into a CUDA graph and replayed, so that the GPU never waits for Python.

A micro-step of Stable Diffusion v1's UNet launches thousands of kernels, and to launch one takes Python longer than
the GPU needs for most of them. A CUDA graph launches all of them at once (PyTorch's notes on CUDA semantics, "CUDA
Graphs", https://docs.pytorch.org/docs/stable/notes/cuda.html).
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)


class Recorder(Protocol):
    """Records what a function does on tensors that stay at their addresses."""

    def warm_up(self, function: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> Tensor:
        """Run it once, as it will be recorded."""

    def record(
        self, function: Callable[..., Tensor], inputs: tuple[Tensor, ...]
    ) -> Callable[[], Tensor]:
        """Record it without running it; what replays it, and returns its result."""


class CudaGraphs:
    """Records into CUDA graphs that share one memory pool: no two of them run at a time."""

    def __init__(self) -> None:
        self.pool, self.stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()

    def warm_up(self, function: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> Tensor:
        """Run it on the stream that records, so that autograd's own state belongs to that stream."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            result = function(*inputs)
        torch.cuda.current_stream().wait_stream(self.stream)
        return result

    def record(
        self, function: Callable[..., Tensor], inputs: tuple[Tensor, ...]
    ) -> Callable[[], Tensor]:
        """Record it into a graph; other threads may use the GPU meanwhile."""
        graph = torch.cuda.CUDAGraph()
        mode = {"stream": self.stream, "capture_error_mode": "thread_local"}
        with torch.cuda.graph(graph, pool=self.pool, **mode):
            result = function(*inputs)

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay


class Captured:
    """A function of tensors that runs as it is at its first call with a shape, and is recorded and replayed after.

    It returns a tensor, reads no value of one in Python, and what it writes beside its result has the same
    address at each call. Where it cannot be recorded it runs as it is, and a line says why.
    """

    def __init__(
        self, function: Callable[..., Tensor], what: str, recorder: Recorder | None = None
    ) -> None:
        """`what` names it in that line, as in "the training step"."""
        self.function, self.what = function, what
        self.recorder = recorder or CudaGraphs()
        self.recorded: dict[tuple, tuple[tuple[Tensor, ...], Callable[[], Tensor]]] = {}
        self.warm: set[tuple] = set()
        self.failed = False

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The function's result for `inputs`, in a tensor of its own."""
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

    def _record(self, shape: tuple, inputs: tuple[Tensor, ...]) -> bool:
        static = tuple(tensor.clone() for tensor in inputs)
        try:
            self.recorded[shape] = static, self.recorder.record(self.function, static)
        except RuntimeError as error:  # a kernel that refuses, or memory
            self.failed = True
            self.recorded.clear()
            reason = str(error).strip().split("\n")[0]
            log.warning("%s is not captured (%s): it goes on more slowly", self.what, reason)
        return not self.failed


@contextmanager
def captured_forward(unet: nn.Module, recorder: Recorder | None = None) -> Iterator[None]:
    """Have a diffusers UNet's forward pass captured inside, for a pipeline that calls it many times.

    The weights may change between calls where they stay at their addresses, as with `copy_`.
    """
    eager = unet.forward

    def forward(sample: Tensor, timestep: Tensor, words: Tensor) -> Tensor:
        return eager(sample, timestep, encoder_hidden_states=words, return_dict=False)[0]

    captured = Captured(forward, "drawing", recorder)

    def call(
        sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, **others: Any
    ) -> tuple[Tensor]:
        others.pop("return_dict", None)
        if any(value is not None for value in others.values()):
            return eager(sample, timestep, encoder_hidden_states, **others, return_dict=False)
        return (captured(sample, timestep, encoder_hidden_states),)

    own = vars(unet).get("forward")  # accelerate gives a model one, for autocast
    unet.forward = call
    try:
        yield
    finally:
        if own is None:
            del unet.forward
        else:
            unet.forward = own
