"""Tensors by name: safetensors files, and how two state dicts differ."""
