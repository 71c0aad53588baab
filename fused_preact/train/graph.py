"""A training step as one CUDA graph."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only


class CapturedStep:
    """`step`, called `warmup` times, then captured as one CUDA graph and replayed: every call is one step on its own tensors.

    `step` is any device work, such as forward, loss, backward and optimizer step, on tensors of fixed shapes; what it returns (a tensor,
    containers of tensors, None) comes back as copies without autograd graph. A replay repeats its kernels at the same addresses and runs
    none of its Python. So what differs between steps must be in its arguments or written in place (a learning rate, the scale of a
    GradScaler), it must read no tensor back to the host, and it must enter autocast itself, whose cache of casts is then captured too.

    Args:
        step: takes the tensors of a call.
        device: a CUDA device, on which the arguments are kept.
        warmup: calls before the capture; torch asks for a few, for lazy initialisation and choices of algorithms.
    """

    def __init__(self, step: Callable[..., Any], device: torch.device | str = "cuda", warmup: int = 3) -> None:
        if warmup < 1:
            raise ValueError(f"expected a warmup of at least 1 call before the capture, got {warmup}")
        self._step, self._warmup = step, warmup
        self._stream = torch.cuda.Stream(device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Tensor] | None = None
        self._results: Any = None

    @property
    def captured(self) -> bool:
        """Whether the next call is a replay alone."""
        return self._graph is not None

    def __call__(self, *inputs: Tensor) -> Any:
        """One step on `inputs`; raises ValueError when their shapes or dtypes are not those of the first call."""
        self._copy_in(inputs)
        if self._warmup:
            self._warmup -= 1
            results = self._warm_up()
        else:
            if self._graph is None:
                self._graph = self._capture()
            self._graph.replay()
            results = self._results
        return tree_map_only(Tensor, Tensor.clone, results)

    def _copy_in(self, inputs: Sequence[Tensor]) -> None:
        if self._inputs is None:
            self._inputs = [torch.empty_like(t, device=self._stream.device) for t in inputs]
        if (expected := _kinds(self._inputs)) != (got := _kinds(inputs)):
            raise ValueError(f"a captured step takes tensors of the shapes and dtypes of its first call: expected {expected}, got {got}")
        for static, t in zip(self._inputs, inputs, strict=True):
            static.copy_(t)

    def _run(self) -> Any:
        # An autograd graph held by results would keep its AccumulateGrad nodes, which are bound to a stream, alive into later steps.
        return tree_map_only(Tensor, Tensor.detach, self._step(*self._inputs))

    def _warm_up(self) -> Any:
        # On the stream of the capture, because libraries set themselves up for each stream anew.
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            results = self._run()
        current.wait_stream(self._stream)
        return results

    def _capture(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self._stream.device), torch.cuda.graph(graph, stream=self._stream):
            self._results = self._run()
        return graph


def _kinds(tensors: Sequence[Tensor]) -> list[tuple[tuple[int, ...], torch.dtype]]:
    return [(tuple(t.shape), t.dtype) for t in tensors]
