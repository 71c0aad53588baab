"""A backend that writes down what it is asked."""

from types import SimpleNamespace

from fused_preact.backends import eager, register

PRIMITIVES = [name for name in vars(eager) if name.startswith("bn_")]


def register_spy(name: str, two_dgrads: bool = False) -> list[str]:
    """Make `use_backend(name)` run the eager backend; the names of the primitives called go into the list returned."""
    calls: list[str] = []

    def spy(primitive: str):
        return lambda *args: (calls.append(primitive), getattr(eager, primitive)(*args))[1]

    spies = {primitive: spy(primitive) for primitive in PRIMITIVES}
    register(name, SimpleNamespace(**spies, unavailable=eager.unavailable, why_not=eager.why_not, TWO_DGRADS=two_dgrads))
    return calls
