"""Boundary IoU (Cheng et al., CVPR 2021): the IoU of the pixels near the contours of two masks."""

import numpy as np
from scipy.ndimage import binary_erosion

from sail_lightning.evaluate import EvalRecord, MeanScore
from sail_lightning.registry import register


def boundary(mask: np.ndarray, share: float) -> np.ndarray:
    """Pixels of a mask (H, W) within `share` of the image's diagonal from its contour; the image's edge is one."""
    return mask & ~binary_erosion(mask, np.ones((3, 3), bool), max(1, round(share * float(np.hypot(*mask.shape)))))


@register
class BoundaryIoU(MeanScore):
    takes = "masks"

    def __init__(self, share: float = 0.02) -> None:
        super().__init__()
        self.share = share

    def answer_score(self, record: EvalRecord) -> float:
        pred, target = (boundary(mask, self.share) for mask in record.united_masks())
        return float((pred & target).sum() / union) if (union := (pred | target).sum()) else 1.0
