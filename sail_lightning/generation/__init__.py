"""Answers: prefill each image once, decode all its questions together over a KV cache, read the masks."""

from sail_lightning.settings.renames import renamed

_NAMES = ("Generation", "LOOP_MASKS", "ROOM", "cut_loop", "generate")
__getattr__ = renamed(__name__, {name: f"{__name__}.engine:{name}" for name in _NAMES})
