"""What the transformer reads: chat template, tokenizer, layout of ids and positions, and the attention plan."""

from sail_lightning.settings.renames import renamed

_NAMES = ("Mark", "PictureLayout", "Sequence", "SequenceBuilder")
__getattr__ = renamed(__name__, {name: f"{__name__}.layout:{name}" for name in _NAMES})
