"""Bytes of a training step: what forward keeps for backward, and the peak."""

import contextlib
import os
import weakref
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from fused_preact.backends import backend


def saved_bytes(model: nn.Module, forward: Callable[[], object]) -> int:
    """Bytes held for backward when `forward` returns: unique storages, without the parameters and buffers of `model`.

    Sees whatever autograd saves, in its own functions and through `ctx.save_for_backward`; a tensor kept as a plain attribute is
    invisible to it. `forward` must return something that holds on to the graph, such as the loss.
    """
    saved: list[weakref.ref[_Saved]] = []

    def pack(tensor: Tensor) -> _Saved:
        held = _Saved(tensor)
        saved.append(weakref.ref(held))
        return held

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held.tensor):
        graph = forward()
    own = _storages([*model.parameters(), *model.buffers()])
    held = _storages(alive.tensor for ref in saved if (alive := ref()) is not None)
    del graph
    return sum(size for pointer, size in held.items() if pointer not in own)


def peak_bytes(step: Callable[[], object], live: Iterable[Tensor], device: torch.device | str = "cpu") -> int:
    """The highest sum of bytes of live tensors during `step`.

    Args:
        step: a training step, warmed up; it must not free what was live before it.
        live: all tensors of the step that exist before it: parameters, buffers, optimizer state, inputs. What else the process
            holds is not counted.
        device: a GPU's allocator knows its own peak; on a CPU the profiler tells each allocation, kernels' scratch memory included.
    """
    before = sum(_storages(live).values())
    if torch.device(device).type == "cuda":
        return before + _cuda_rise(step, device)
    return before + _cpu_rise(step)


class _Saved:
    """Stands in the graph for a tensor, and dies with its node."""

    def __init__(self, tensor: Tensor) -> None:
        # A result that is saved knows the node that saves it: undetached, the two would keep each other alive for ever.
        self.tensor = tensor.detach()


def _storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    storages = (tensor.untyped_storage() for tensor in tensors)
    return {storage.data_ptr(): storage.nbytes() for storage in storages if storage.nbytes()}


def _cuda_rise(step: Callable[[], object], device: torch.device | str) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _cpu_rise(step: Callable[[], object]) -> int:
    from torch._C._profiler import _EventType

    # Kineto announces its start and stop on stderr, and reads this once.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    # The cpu backend keeps memory of its own, which the profiler does not see.
    seen = getattr(backend("cpu"), "allocated_by_torch", contextlib.nullcontext)
    with seen(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    allocations, todo = [], list(profile.profiler.kineto_results.experimental_event_tree())
    while todo:
        event = todo.pop()
        if event.tag == _EventType.Allocation and event.extra_fields.device.type == "cpu":
            allocations.append((event.start_time_ns, event.extra_fields.ptr, event.extra_fields.alloc_size))
        todo += event.children
    return _highest(allocations)


def _highest(allocations: list[tuple[int, int, int]]) -> int:
    """Peak of the running sum of (time, pointer, bytes; negative when freed); frees of earlier memory do not count."""
    sizes: dict[int, int] = {}
    now = highest = 0
    for _, pointer, size in sorted(allocations, key=lambda allocation: allocation[0]):
        if size > 0:
            sizes[pointer] = size
            now += size
            highest = max(highest, now)
        else:
            now -= sizes.pop(pointer, 0)
    return highest
