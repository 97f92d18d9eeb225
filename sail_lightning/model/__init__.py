"""The model in torch alone: the transformer with its mask head, the losses, and the bundle that answers questions."""

from sail_lightning.settings.renames import renamed

_NAMES = ("FeatureGroup", "MaskHead", "ModelOutput", "SailModel", "group_maps")
__getattr__ = renamed(
    __name__,
    {name: f"{__name__}.model:{name}" for name in _NAMES} | {"put_together": f"{__name__}.model:unpatchify"},
)
