"""Kernels on the CPU: CUDA libraries loaded into the simulator, the memory that they may touch, and what it saw."""

import ctypes
import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.ptxsim.build import BUILD, LIBRARY, build

FORWARD, REVERSE, RANDOM = range(3)


@dataclass(frozen=True)
class Launch:
    """What one launch did. Instructions and mma are those of warps; traffic is (counted, the least possible)."""

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    instructions: int
    mma: int
    shared: tuple[int, int]  # wavefronts
    global_: dict[str, tuple[int, int]]  # sectors, by allocation


class Simulator:
    def __init__(self) -> None:
        build()
        self._library = ctypes.CDLL(str(LIBRARY))
        for function in (self._library.ptxsim_report, self._library.ptxsim_launches):
            function.restype = ctypes.c_char_p
        self.clear()

    def load(self, name: str | Path) -> ctypes.CDLL:
        """The library of kernels/NAME.cu, or at a path. Raises RuntimeError if the simulator does not know an instruction in it."""
        library = ctypes.CDLL(str(name if isinstance(name, Path) else BUILD / f"lib{name}.so"))
        if self.report():
            raise RuntimeError(self.report())
        return library

    def clear(self, order: int = FORWARD, seed: int = 1, copies_at_once: bool = False, checks: bool = True) -> None:
        """Forgets memory, launches and reports. Order: of threads and blocks. copies_at_once: cp.async does not wait until it must."""
        self._library.ptxsim_clear()
        self._library.ptxsim_configure(order, ctypes.c_uint64(seed), int(copies_at_once), int(checks))

    def memory(self, array: np.ndarray, name: str, writable: bool) -> ctypes.c_void_p:
        """A pointer that kernels may use."""
        self._library.ptxsim_region(ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes), name.encode(), int(writable))
        return ctypes.c_void_p(array.ctypes.data)

    def report(self) -> str:
        """What was wrong, a sentence a line; empty if nothing was."""
        return self._library.ptxsim_report().decode()

    def launches(self) -> list[Launch]:
        def launch(grid: list[int], block: list[int], shared: list[int], **rest: Any) -> Launch:
            traffic = {name: tuple(counts) for name, counts in rest.pop("global").items()}
            return Launch(grid=tuple(grid), block=tuple(block), shared=tuple(shared), global_=traffic, **rest)

        return [launch(**fields) for fields in json.loads(self._library.ptxsim_launches())]


@functools.cache
def simulator() -> Simulator:
    """The one of this process."""
    return Simulator()
