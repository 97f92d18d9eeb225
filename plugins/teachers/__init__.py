"""Teachers: which expert is distilled, into which features?"""

from sail_lightning.plugins.teachers.cached import CachedTeacher
from sail_lightning.plugins.teachers.mask2former import Mask2FormerTeacher
from sail_lightning.plugins.teachers.radio import RADIOTeacher
from sail_lightning.plugins.teachers.sam2 import SAM2Teacher
from sail_lightning.plugins.teachers.student import StudentTeacher
from sail_lightning.plugins.teachers.timm import TimmTeacher

__all__ = ["CachedTeacher", "Mask2FormerTeacher", "RADIOTeacher", "SAM2Teacher", "StudentTeacher", "TimmTeacher"]
