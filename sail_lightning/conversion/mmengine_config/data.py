"""Converts the training data of an official config: each data set becomes a source, the list of them a mixture."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sail_lightning.conversion.mmengine_config.ledger import Ledger, Section, short
from sail_lightning.conversion.mmengine_config.model import EVE_TOKENS, Settings

SHAPES = {"mask": 0.4, "box": 0.3, "point": 0.3}
"""Probabilities of the shapes of visual prompts in the official augmented sets, where their config does not set
them."""
OSPREY = {
    "osprey_conversation.json": "conversation",
    "osprey_part_level.json": "part_level",
    "osprey_lvis_positive_negative.json": "positive_negative",
    "osprey_short_form.json": "short_form",
    "osprey_detail_description.json": "detail_description",
}
NAMES = ("refcoco", "refcoco+", "refcocog")


@dataclass(frozen=True)
class Kind:
    """The conversion of an official data set class to a source.

    Args:
        source: The source's class.
        name: Its name in the mixture.
        keys: Names of the source's arguments by official name; their values are unchanged.
        fixed: Arguments of the source that the official class implies.
        defaults: Official defaults that differ from the source's, by the source's argument names.
        prompted: Whether its questions are about visual prompts.
        shaped: Whether prompts are drawn as boxes and points too.
        locate: Sets what depends on several official arguments; returns why the set cannot be carried over, or None.
    """

    source: str
    name: str
    keys: dict[str, str] = field(default_factory=dict)
    fixed: dict[str, Any] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    prompted: bool = False
    shaped: bool = False
    locate: Callable[[Section, dict[str, Any]], str | None] | None = None


def _refer(data: Section, args: dict[str, Any]) -> str | None:
    """Converts the folder, images and split of a set in the files of the `refer` tool."""
    root = str(data.get("data_root", "")).rstrip("/")
    name = posixpath.basename(root)
    split = re.fullmatch(r"refs\((\w+)\)\.(?:p|json)", str(data.get("split_file")))
    if name not in NAMES or split is None:
        return f"data_root must end in one of {', '.join(NAMES)} and split_file be refs(NAME).p"
    args |= {"name": name, "split_by": split[1], "annotations": root}
    _photos(data, args, root)
    return None


def _grefer(data: Section, args: dict[str, Any]) -> str | None:
    root = str(data.get("data_root", "")).rstrip("/")
    if not str(data.get("split_file")).startswith("grefs(unc)."):
        return "split_file must be grefs(unc).json"
    args["annotations"] = root
    _photos(data, args, root)
    return None


def _photos(data: Section, args: dict[str, Any], root: str) -> None:
    """Accounts for the files of a set of referring expressions."""
    prefix = data.sub("data_prefix").get("img_path", "")
    args["images"] = posixpath.normpath(posixpath.join(root, prefix))
    for key in ("data_root", "split_file"):
        data.went(key, "annotations" if key == "data_root" else "name and split of the source")
    data.sub("data_prefix").went("img_path", "images")
    data.same("ann_file", "instances.json", "the file that the source reads")


def _osprey(data: Section, args: dict[str, Any]) -> str | None:
    folder, file = posixpath.split(str(data.get("data_path")))
    if file not in OSPREY:
        return f"{file} is none of the five files of Osprey-724K"
    args |= {"kind": OSPREY[file], "annotations": folder}
    data.went("data_path", "kind and annotations")
    folders = data.get("image_folder")
    if folders is not None:
        args["images"] = [folders] if isinstance(folders, str) else list(folders)
    data.went("image_folder", "images")
    return None


def _reason_seg(data: Section, args: dict[str, Any]) -> str | None:
    folder, split = posixpath.split(str(data.get("image_folder")).rstrip("/"))
    if split not in ("train", "val", "test"):
        return "image_folder must end in train, val or test"
    args |= {"folder": folder, "split": split}
    data.went("image_folder", "folder and split")
    return None


_OBJECTS = {"num_classes_per_sample": "objects"}
_THREE = {"objects": 3}
_JSON = {"data_path": "annotations", "image_folder": "images"}
_PANOPTIC = {"image_folder": "images", "pano_rgb_folder": "pngs", "pano_json": "annotations", **_OBJECTS}
_SAM = {"image_folder": "images", "data_path": "annotations", "json_file": "annotations", **_OBJECTS}
_MUSE = {
    "train2014_image_folder": "train2014",
    "train2017_image_folder": "train2017",
    "val2017_image_folder": "val2017",
    "json_file": "annotations",
}


def _osprey_kind(shaped: bool = False) -> Kind:
    return Kind("Osprey", "osprey", _OBJECTS, defaults=_THREE, prompted=True, shaped=shaped, locate=_osprey)


KINDS = {
    "ReferSegmDataset": Kind("RefCOCO", "refcoco", _OBJECTS, defaults=_THREE, locate=_refer),
    "GRefCoCoDataset": Kind("GRefCOCO", "grefcoco", _OBJECTS, defaults=_THREE, locate=_grefer),
    "ReferVisualPromptDataset": Kind(
        "RegionCaptions", "region_captions", _OBJECTS, defaults=_THREE, prompted=True, locate=_refer
    ),
    "COCOSegmDataset": Kind("CocoPanoptic", "coco_panoptic", _PANOPTIC, {"mode": "instance"}, _THREE),
    "COCOSemanticSegmDataset": Kind("CocoPanoptic", "coco_semantic", _PANOPTIC, {"mode": "semantic"}, _THREE),
    "COCOVisualPromptDataset": Kind("CocoPrompts", "coco_prompts", _PANOPTIC, defaults=_THREE, prompted=True),
    "PixelCapSegDataset": Kind("Pix2CapSegmentation", "pix2cap", _PANOPTIC, defaults=_THREE),
    "PixelCapVisualPromptDataset": Kind("Pix2CapPrompts", "pix2cap_prompts", _PANOPTIC, defaults=_THREE, prompted=True),
    "PixelCapAgumentedVisualPromptDataset": Kind(
        "Pix2CapPrompts", "pix2cap_prompts_shaped", _PANOPTIC, defaults=_THREE, prompted=True, shaped=True
    ),
    "GlammGrandfDataset": Kind("GranDf", "grandf", _JSON),
    "GlammOpenpsgDataset": Kind("OpenPsgGCG", "openpsg", _JSON),
    "GlammRefcocogDataset": Kind("RefCOCOgGCG", "refcocog_gcg", _JSON),
    "GlammFlickerDataset": Kind("FlickrGCG", "flickr", _JSON),
    "MuseDataset": Kind("Muse", "muse", _MUSE),
    "ReasonSegSegDataset": Kind(
        "ReasonSeg",
        "reason_seg",
        {"num_classes_per_sample": "sentences"},
        defaults={"sentences": 3},
        locate=_reason_seg,
    ),
    "OspreyDataset": _osprey_kind(),
    "OspreyDescriptionDataset": _osprey_kind(),
    "OspreyShortDescriptionDataset": _osprey_kind(),
    "OspreyAgumentedDataset": _osprey_kind(shaped=True),
    "OspreyAgumentedDescriptionDataset": _osprey_kind(shaped=True),
    "OspreyAgumentedShortDescriptionDataset": _osprey_kind(shaped=True),
    "SamVisualPromptDataset": Kind("SamPrompts", "sam_prompts", _SAM, defaults=_THREE, prompted=True),
    "LLaVADataset": Kind("Llava", "llava", _JSON),
}
"""Conversions by official data set class of Pixel-SAIL; the spelling of the names is official."""


def convert(ledger: Ledger, settings: Settings) -> None:
    """Converts the data loader and its data sets."""
    loader = ledger.section("train_dataloader")
    loader.carry("num_workers", "data.num_workers")
    loader.went("batch_size", "data.token_budget (not the same: see the end)")
    loader.drop("sampler", "samples are packed into batches by their real lengths (data.packing_buffer_size)")
    loader.drop("collate_fn", "samples are packed into batches, without padding")
    for key in ("pin_memory", "persistent_workers", "drop_last", "prefetch_factor"):
        loader.drop(key, "the data module decides it")
    dataset = loader.sub("dataset") or ledger.section("train_dataset")
    lengths = _mixture(dataset, settings)
    if lengths is None:
        ledger.notes.append("There is no training data in it: set data.train (docs/data.md).")
    batch = int(loader.get("batch_size", 1))
    tokens = EVE_TOKENS if settings.family == "eve" or not lengths else max(lengths)
    ledger.put("model.max_tokens", tokens)
    ledger.put("data.token_budget", tokens * batch)
    ledger.notes.append(
        f"batch_size={batch} became data.token_budget={tokens * batch}, which is not the same: an official batch holds "
        f"{batch} sample(s) of up to {tokens} tokens, ours as many whole samples as fit, so a step sees more samples."
    )
    for split in ("val", "test"):
        for key in (f"{split}_dataloader", f"{split}_cfg", f"{split}_evaluator"):
            ledger.section().drop(key, f"set data.{split} to a source; the metrics are the model's own")


def _mixture(dataset: Section, settings: Settings) -> list[int] | None:
    """Converts the data sets and returns their `max_length`s, or None if no data set could be carried over."""
    if not dataset:
        return None
    ledger, lengths = dataset.ledger, []
    sources: dict[str, Any] = {}
    repeats: dict[str, int] = {}
    if "datasets" in dataset:
        dataset.went("type", "data.train.class_path (Mixture)")
        parts = dataset.sub("datasets").subs()
        if not parts:
            dataset.agree("datasets", "no data set")
    else:
        parts = [dataset]
    for part in parts:
        found = _source(part, settings)
        if found is None:
            continue
        kind, args, count = found
        name = _free_name(_name(kind, args), sources)
        part.went("type", f"data.train.init_args.sources.{name} ({kind.source})")
        sources[name] = {"class_path": kind.source, "init_args": args} if args else {"class_path": kind.source}
        times = count * (part.path[-1].count(",") + 1 if part.path[-1].startswith("[") else 1)
        if times > 1:
            repeats[name] = times
        lengths += [part.values["max_length"]] if "max_length" in part else []
    if not sources:
        return None
    ledger.put("data.train", {"class_path": "Mixture", "init_args": {"sources": sources}})
    if repeats:
        ledger.put("data.train.init_args.repeats", repeats)
    ledger.notes.append("Paths of data are those of the official file, relative to $SAIL_DATA or the current folder.")
    return lengths


def _source(data: Section, settings: Settings) -> tuple[Kind, dict[str, Any], int] | None:
    """Returns the source of a data set, its arguments and how often a pass reads it; None, with a reported reason, if
    there is none."""
    kind = KINDS.get(short(data.get("type")))
    if kind is None:
        data.drop_all(
            f"there is no source for {short(data.get('type'))}; write one (CONTRIBUTING.md) or use JsonlSource"
        )
        return None
    if kind.prompted and not settings.prompts:
        data.drop_all("its questions need visual prompts and the model has none; the official run fails on it")
        return None
    args = dict(kind.fixed)
    located = len(data.ledger.entries)
    if kind.locate and (reason := kind.locate(data, args)):
        del data.ledger.entries[located:]
        data.drop_all(reason)
        return None
    for key, ours in kind.keys.items():
        if key in data:
            args[ours] = data.values[key]
            data.went(key, ours)
    args = {ours: value for ours, value in kind.defaults.items() if ours not in args} | args
    if kind.prompted:
        args["num_prompts"] = data.get("prompt_numbers", 10)
        data.went("prompt_numbers", "num_prompts")
    if kind.shaped:
        args["shapes"] = {shape: share for shape, share in (data.get("prompt_ratios") or SHAPES).items() if share}
        data.went("prompt_ratios", "shapes")
    count = int(data.get("repeats", 1))
    data.went("repeats", "data.train.init_args.repeats")
    _common(data, kind, settings)
    return kind, args, count


def _common(data: Section, kind: Kind, settings: Settings) -> None:
    """Accounts for the model's settings that every official data set repeats."""
    for key, value in settings.values.items():
        data.same(key, value, "the model's", "data takes it from the model here, whose value is another")
    if settings.family == "eve":
        data.drop("max_length", f"it does not count the image; model.max_tokens is {EVE_TOKENS}")
        processor = data.sub("image_preprocessor").get("pretrained_model_name_or_path", "")
        if side := re.search(r"res(\d+)", processor):
            data.ledger.put("model.max_side", int(side[1]))
            data.went("image_preprocessor", "model.max_side")
    else:
        data.went("max_length", "model.max_tokens (the largest of all) and data.token_budget")
    if kind.source == "Muse":
        data.drop("num_classes_per_sample", "the official class ignores it: all questions are asked")
    if kind.source == "CocoPanoptic" or kind.source == "CocoPrompts":
        data.drop("class_txt", "the names of COCO's classes are in the package")
    data.drop("lazy", "sources read their files when they are first asked")


def _name(kind: Kind, args: dict[str, Any]) -> str:
    """Returns the name of a source in the mixture, as in the packaged configs."""
    if kind.source == "RefCOCO":
        return str(args["name"]).replace("+", "_plus")
    if kind.source == "Osprey":
        return f"osprey_{args['kind']}" + ("_shaped" if kind.shaped else "")
    return kind.name


def _free_name(name: str, taken: dict[str, Any]) -> str:
    number = 2
    free = name
    while free in taken:
        free, number = f"{name}_{number}", number + 1
    return free
