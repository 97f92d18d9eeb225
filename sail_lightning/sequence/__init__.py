"""What the transformer reads: chat template, tokenizer, layout of ids and positions, and the attention plan."""

from sail_lightning.settings.renames import renamed

_NAMES = {
    "Mark": "LayoutToken",
    "PictureLayout": "ImageLayout",
    "Sequence": "TokenSequence",
    "SequenceBuilder": "SequenceBuilder",
}
__getattr__ = renamed(__name__, {old: f"{__name__}.layout:{new}" for old, new in _NAMES.items()})
