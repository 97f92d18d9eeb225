"""Which expert is distilled, into which features."""

from sail_lightning.plugins.teachers.timm import TimmTeacher

__all__ = ["TimmTeacher"]
