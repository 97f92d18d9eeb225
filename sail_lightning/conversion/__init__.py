"""Checkpoints of any kind to weights by name, and official weights to and from ours."""
