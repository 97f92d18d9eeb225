"""Data sources, one module per annotation format."""

from sail_lightning.data.sources.base import Source
from sail_lightning.data.sources.coco_instances import CocoInstances
from sail_lightning.data.sources.coco_panoptic import CocoPanoptic
from sail_lightning.data.sources.coco_prompts import CocoPrompts
from sail_lightning.data.sources.folder import FolderSource
from sail_lightning.data.sources.glamm import FlickrGCG, GranDf, OpenPsgGCG, RefCOCOgGCG
from sail_lightning.data.sources.glamm_benchmark import GranDfBenchmark
from sail_lightning.data.sources.grefcoco import GRefCOCO
from sail_lightning.data.sources.indexed import IndexedSource
from sail_lightning.data.sources.jsonl import JsonlSource
from sail_lightning.data.sources.laboratory import LaboratorySource
from sail_lightning.data.sources.llava import Llava
from sail_lightning.data.sources.mixture import Mixture
from sail_lightning.data.sources.muse import Muse
from sail_lightning.data.sources.osprey import Osprey
from sail_lightning.data.sources.parquet import ParquetSource
from sail_lightning.data.sources.perbench import PerBench
from sail_lightning.data.sources.pix2cap import Pix2CapSegmentation
from sail_lightning.data.sources.pix2cap_prompts import Pix2CapPrompts
from sail_lightning.data.sources.reason_seg import ReasonSeg
from sail_lightning.data.sources.refcoco import RefCOCO
from sail_lightning.data.sources.refcoco_m import RefCOCOM
from sail_lightning.data.sources.region_captions import RegionCaptionBenchmark, RegionCaptions
from sail_lightning.data.sources.sam_prompts import SamPrompts
from sail_lightning.data.sources.shards import ShardSource

__all__ = [
    "CocoInstances",
    "CocoPanoptic",
    "CocoPrompts",
    "FlickrGCG",
    "FolderSource",
    "GRefCOCO",
    "GranDf",
    "GranDfBenchmark",
    "IndexedSource",
    "JsonlSource",
    "LaboratorySource",
    "Llava",
    "Mixture",
    "Muse",
    "OpenPsgGCG",
    "Osprey",
    "ParquetSource",
    "PerBench",
    "Pix2CapPrompts",
    "Pix2CapSegmentation",
    "ReasonSeg",
    "RefCOCO",
    "RefCOCOM",
    "RefCOCOgGCG",
    "RegionCaptionBenchmark",
    "RegionCaptions",
    "SamPrompts",
    "ShardSource",
    "Source",
]
