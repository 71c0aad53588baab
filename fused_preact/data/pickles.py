"""Pickles of CIFAR, read without pickle: a file that comes from anywhere must not run anything.

Opcodes are taken one by one, and the few that such files hold build plain values. Globals are names, never looked up; of an array there
is a record of its shape and bytes. So there is nothing to call, and memory stays a few times the file's, besides what `MOST_OPCODES` empty
lists take.
"""

import io
import pickletools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from fused_preact.data.source import DataError

# Of Python 2, and of numpy 2. Module and name with a blank between, as `pickletools` has them.
_RECONSTRUCT = ("numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct")
_NDARRAY, _DTYPE, _ENCODE = "numpy ndarray", "numpy dtype", "_codecs encode"
_ADMITTED = (*_RECONSTRUCT, _NDARRAY, _DTYPE, _ENCODE)
# CIFAR-100 written again by Python 3 in protocol 2 has half as many. An opcode is a byte of the file and 60 of memory.
MOST_OPCODES = 2**20
# Tuples, not sets: what is looked for in them may be nested so deeply that its hash overflows the stack.
_LATIN1 = ("latin1", b"latin1")
_BYTE = ("u1", b"u1")


class Array:
    """A matrix of bytes as numpy pickles it; `shape` is (0, 0) if the pickle begins one and says no more."""

    def __init__(self) -> None:
        self.shape, self._transposed, self._payload = (0, 0), False, b""

    def tensor(self) -> Tensor:
        """`shape` uint8, on memory of its own; not contiguous if its columns lie first in the file."""
        if not self._payload:
            return torch.empty(self.shape, dtype=torch.uint8)
        flat = torch.frombuffer(bytearray(self._payload), dtype=torch.uint8)
        return flat.view(self.shape[::-1]).T if self._transposed else flat.view(self.shape)

    def fill(self, version: Any, shape: Any, dtype: Any, transposed: Any, payload: Any) -> None:
        """Take the state that numpy's `__reduce__` gives; raises TypeError or ValueError for any but that of a matrix of bytes."""
        rows, columns = shape
        if not (version == 1 and isinstance(dtype, _Dtype) and isinstance(payload, bytes) and type(rows) is type(columns) is int):
            raise TypeError("an array is no matrix of bytes")
        if min(rows, columns) < 0 or rows * columns != len(payload):
            raise ValueError("an array has not as many bytes as its shape says")
        self.shape, self._transposed, self._payload = (rows, columns), bool(transposed), payload


def load(data: bytes, file: str) -> Any:
    """What the pickle `data` holds: dict, list, tuple, str, bytes, int, float, bool, None, and `Array`.

    Strings of Python 2 are bytes. `file` is its name in the message of DataError, which is raised for a pickle that is damaged or
    asks for anything else.
    """
    machine = _Machine(file, len(data))
    try:
        for opcode, argument in _read(data, machine):
            machine.run(opcode, argument)
        (value,) = machine.stack
    except DataError:
        raise
    except (ValueError, TypeError, LookupError) as error:
        raise DataError(f"{file}: expected a pickle of CIFAR, got one that is damaged or holds something else: {error}") from None
    return value


def _read(data: bytes, machine: "_Machine") -> Iterator[tuple[str, Any]]:
    """The opcodes and their arguments; refused ones are not even decoded, as `pickletools.genops` would do, which never ends for some."""
    stream = io.BytesIO(data)
    for _ in range(MOST_OPCODES):
        code = stream.read(1)
        if code not in _BY_CODE:
            raise ValueError(f"the opcode {code!r}, which is none" if code else "it ends too early")
        opcode = _BY_CODE[code]
        if opcode.name not in _VALUES and opcode.name not in _OPCODES:
            raise machine.refused(f"the opcode {opcode.name}")
        yield opcode.name, _name(stream) if opcode.name == "GLOBAL" else opcode.arg and opcode.arg.reader(stream)
        if opcode.name == "STOP":
            return
    raise ValueError(f"more than {MOST_OPCODES} opcodes")


def _name(stream: io.BytesIO) -> str:
    """Module and name, of a line each. `pickletools` would look for backslashes in them, as no unpickler does, and warn of them."""
    return " ".join(stream.readline().removesuffix(b"\n").decode("ascii") for _ in range(2))


_BY_CODE = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}


class _Global(str):
    """The name of a global, in place of what it names."""


class _Dtype:
    """numpy's uint8."""


class _Machine:
    """The stack and the memo that opcodes work on; raises DataError, or an ordinary error where the stack is not as it must be."""

    def __init__(self, file: str, size: int) -> None:
        self.file = file
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self._encodable = size

    def run(self, opcode: str, argument: Any) -> None:
        if opcode in _VALUES:
            self.stack.append(_VALUES[opcode](argument))
        else:
            _OPCODES[opcode](self, argument)

    def refused(self, what: str) -> DataError:
        return DataError(f"{self.file}: expected a pickle of CIFAR, got one that asks for {what}; nothing of it was run")

    def pop(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise IndexError("more is taken from the stack than there is")
        return self.pop_from(len(self.stack) - count)

    def pop_marked(self) -> list[Any]:
        return self.pop_from(self.marks.pop())

    def pop_from(self, begin: int) -> list[Any]:
        values = self.stack[begin:]
        del self.stack[begin:]
        return values

    def extend(self, values: list[Any]) -> None:
        # The method of the type, so that it is an error where the stack holds something else.
        list.extend(self.stack[-1], values)

    def update(self, values: list[Any]) -> None:
        # No numbers: whoever chooses them can choose thousands of one hash, and time would go with their square.
        if not all(isinstance(key, (str, bytes)) for key in values[::2]):
            raise TypeError("a key of a dict is no string")
        dict.update(self.stack[-1], zip(values[::2], values[1::2], strict=True))

    def find(self, name: str) -> None:
        if name not in _ADMITTED:
            raise self.refused(f"the global {name.replace(' ', '.')[:100]!r}")
        self.stack.append(_Global(name))

    def find_by_stack(self) -> None:
        self.find(str.join(" ", self.pop(2)))

    def reduce(self) -> None:
        function, arguments = self.pop(2)
        if not (isinstance(function, _Global) and isinstance(arguments, tuple) and arguments):
            raise TypeError("what is called is no global")
        self.stack.append(self.called(function, *arguments))

    def called(self, function: _Global, first: Any, *rest: Any) -> Any:
        if function in _RECONSTRUCT and first == _NDARRAY:
            return Array()
        if function == _DTYPE and first in _BYTE:
            return _Dtype()
        if function == _ENCODE and len(rest) == 1 and rest[0] in _LATIN1:
            # Each text is there once for its encoding; one encoded again and again would fill the memory.
            self._encodable -= len(first)
            if self._encodable < 0:
                raise ValueError("more text is encoded than the file has")
            return str.encode(first, "latin-1")
        raise self.refused(f"{function.replace(' ', '.')} of something else than bytes")

    def build(self) -> None:
        built, state = self.pop(2)
        if isinstance(built, Array):
            built.fill(*state)
        elif not isinstance(built, _Dtype):
            raise TypeError("what gets a state is no array")
        self.stack.append(built)


def _latin1(text: str) -> bytes:
    return text.encode("latin-1")


def _same(value: Any) -> Any:
    return value


# What an opcode puts on the stack, of its argument. pickletools decodes the strings of Python 2 as latin-1.
_VALUES: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"), _same),
    **dict.fromkeys(("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8"), _same),
    **dict.fromkeys(("SHORT_BINSTRING", "BINSTRING"), _latin1),
    "NONE": lambda _: None,
    "NEWTRUE": lambda _: True,
    "NEWFALSE": lambda _: False,
    "EMPTY_DICT": lambda _: {},
    "EMPTY_LIST": lambda _: [],
    "EMPTY_TUPLE": lambda _: (),
}


def _put(machine: _Machine, index: int) -> None:
    machine.memo[index] = machine.stack[-1]


_OPCODES: dict[str, Callable[[_Machine, Any], object]] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda machine, _: None),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _put),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda machine, index: machine.stack.append(machine.memo[index])),
    "MEMOIZE": lambda machine, _: _put(machine, len(machine.memo)),
    "MARK": lambda machine, _: machine.marks.append(len(machine.stack)),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.pop_marked())),
    "TUPLE1": lambda machine, _: machine.stack.append(tuple(machine.pop(1))),
    "TUPLE2": lambda machine, _: machine.stack.append(tuple(machine.pop(2))),
    "TUPLE3": lambda machine, _: machine.stack.append(tuple(machine.pop(3))),
    "APPEND": lambda machine, _: machine.extend(machine.pop(1)),
    "APPENDS": lambda machine, _: machine.extend(machine.pop_marked()),
    "SETITEM": lambda machine, _: machine.update(machine.pop(2)),
    "SETITEMS": lambda machine, _: machine.update(machine.pop_marked()),
    "GLOBAL": lambda machine, name: machine.find(name),
    "STACK_GLOBAL": lambda machine, _: machine.find_by_stack(),
    "REDUCE": lambda machine, _: machine.reduce(),
    "BUILD": lambda machine, _: machine.build(),
}
