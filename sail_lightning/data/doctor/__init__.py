"""Checks data sets: reads every record, and reports every fault with its file, its record and the fix."""

from sail_lightning.data.doctor.faults import KINDS, Fault
from sail_lightning.data.doctor.leaf_sources import LeafSource, flatten_sources
from sail_lightning.data.doctor.report import Report
from sail_lightning.data.doctor.run import check
from sail_lightning.data.doctor.statistics import Statistics, gather
from sail_lightning.settings.renames import renamed

__all__ = ["KINDS", "Fault", "LeafSource", "Report", "Statistics", "check", "flatten_sources", "gather"]


__getattr__ = renamed(__name__, {"Leaf": "LeafSource", "leaves": "flatten_sources"})
