"""Swapping fused functions into networks that exist.

`fuse.py` changes the class of norms to those of `norms.py`, which return a tensor of `deferred.py`; it stands for a node of `nodes.py` or
`sums.py`, which run the functions of `functional/`.
"""

from fused_preact.convert.explain import Explanation, explain
from fused_preact.convert.fuse import fuse, is_fused, unfuse

__all__ = ["Explanation", "explain", "fuse", "is_fused", "unfuse"]
