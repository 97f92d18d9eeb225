"""The network in torch alone: the transformer with its mask head, its losses, and the bundle that answers questions."""

from sail_lightning.settings.renames import renamed

_NAMES = ("FeatureGroup", "MaskHead", "ModelOutput", "SailModel", "group_maps", "put_together")
__getattr__ = renamed(__name__, {name: f"{__name__}.model:{name}" for name in _NAMES})
