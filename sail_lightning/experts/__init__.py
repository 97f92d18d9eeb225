"""Experts of one's own: a small Mask2Former, trained on the masks of any source, for `Mask2FormerTeacher`."""
