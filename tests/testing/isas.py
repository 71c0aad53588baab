"""The cpu backend held to one instruction set, as a backend of its own."""

from types import SimpleNamespace

from fused_preact.backends import cpu, register
from tests.testing.spies import PRIMITIVES


def register_instruction_sets() -> list[str]:
    """Make `use_backend("cpu_avx2")` and the like run the cpu backend on that instruction set; the names."""
    from fused_preact import _cpu

    names = []
    for isa in _cpu.isas()[:-1]:
        names.append(f"cpu_{isa}")
        held = {primitive: _held(isa, getattr(cpu, primitive)) for primitive in PRIMITIVES}
        register(names[-1], SimpleNamespace(**held, unavailable=cpu.unavailable, why_not=cpu.why_not, TWO_DGRADS=cpu.TWO_DGRADS))
    return names


def _held(isa, primitive):
    from fused_preact import _cpu

    def call(*args):
        before = _cpu.isa()
        _cpu.set_isa(isa)
        try:
            return primitive(*args)
        finally:
            _cpu.set_isa(before)

    return call
