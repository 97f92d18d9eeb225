"""Tensors by name: safetensors files, checkpoints of any kind without running code, and how state dicts differ."""
