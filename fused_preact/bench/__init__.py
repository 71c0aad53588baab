"""Fused networks measured against plain PyTorch: the same weights, one process, interleaved, and only after they agree."""
