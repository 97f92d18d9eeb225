"""Boundary IoU (Cheng et al., CVPR 2021): the IoU of the pixels near the contours of two masks."""

import numpy as np
from scipy.ndimage import binary_erosion

from sail_lightning.evaluate import EvalRecord, MeanScore
from sail_lightning.registry import register
from sail_lightning.settings.ranges import UnitInterval


@register
class BoundaryIoU(MeanScore):
    takes = "masks"

    def __init__(self, share: UnitInterval = 0.02) -> None:
        super().__init__()
        self.share = share

    def boundary(self, mask: np.ndarray) -> np.ndarray:
        """Pixels of a mask (H, W) within `share` of the image's diagonal from its contour; the image's edge is one."""
        return mask & ~binary_erosion(mask, np.ones((3, 3), bool), max(1, round(self.share * np.hypot(*mask.shape))))

    def answer_score(self, record: EvalRecord) -> float:
        pred, target = (self.boundary(mask) for mask in record.united_masks())
        return float((pred & target).sum() / union) if (union := (pred | target).sum()) else 1.0
