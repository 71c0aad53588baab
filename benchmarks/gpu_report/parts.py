"""The parts of the report, in the order in which they run."""

from typing import NamedTuple


class Part(NamedTuple):
    """One part: rows of one kind, measured by `module.run` in child processes.

    seconds: weight in sharing the budget; about what it takes on an H200.  workers: children at once, where nothing is timed.
    warm: children at once that run everything untimed beforehand, to compile kernels in parallel.  gigabytes: what a child needs.
    asked: runs only when --only names it.
    """

    name: str
    module: str
    seconds: float
    workers: int = 1
    warm: int = 0
    gigabytes: float = 2.0
    asked: bool = False


PARTS = (
    # Its child may be the first process to read torch off a disk; what it leaves of its share goes to the others.
    Part("machine", "machine", 30),
    Part("ceilings", "ceilings", 15),
    Part("golden", "golden", 20),
    Part("correctness", "correctness", 80, workers=12),
    Part("primitives", "primitives", 150, warm=12, gigabytes=4),
    Part("resnet1001", "steps", 130),
    Part("resnet164", "steps", 45),
    Part("resnet200", "steps", 60),
    Part("memory", "memory", 40, workers=3, gigabytes=40),
    Part("sanitizer", "tools", 40),
    Part("tests", "suite", 400, asked=True),
    Part("profile", "tools", 40, asked=True),
)
NAMES = tuple(part.name for part in PARTS)
