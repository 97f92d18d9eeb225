"""The doctor of data sets: every record looked at, every fault named with its file, its record and the mend."""

from sail_lightning.data.doctor.faults import KINDS, Fault
from sail_lightning.data.doctor.leaf_sources import Leaf, leaves
from sail_lightning.data.doctor.report import Report
from sail_lightning.data.doctor.run import check
from sail_lightning.data.doctor.statistics import Statistics, gather

__all__ = ["KINDS", "Fault", "Leaf", "Report", "Statistics", "check", "gather", "leaves"]
