"""Swapping fused functions into networks that exist."""

from fused_preact.convert.fuse import fuse, unfuse

__all__ = ["fuse", "unfuse"]
