"""The primitives as custom operators `torch.ops.fused_preact.*`: schema, fake, dispatch to a backend; and units composed of them."""

from fused_preact.ops import bn, conv, unit, unit_operators
from fused_preact.ops.library import Operators, backend_for, traced

__all__ = ["Operators", "backend_for", "bn", "conv", "traced", "unit", "unit_operators"]
