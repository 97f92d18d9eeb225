"""Provenance of a measured value: the files of annotations and weights, and their sha256."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sail_lightning.data.sources import IndexedSource, Source
from sail_lightning.pretrained.model_folder import is_folder, locate
from sail_lightning.weights import safetensors_io

PROBES = 5
"""Number of questions that are hashed in place of all questions of a source."""


def files_digest(paths: list[Path]) -> str:
    """Returns the sha256 of one file; of several files, that of their names and checksums in the order of the names."""
    if len(paths) == 1:
        return safetensors_io.digest(paths[0])
    listed = "".join(
        f"{path.name} {safetensors_io.digest(path)}\n" for path in sorted(paths, key=lambda path: path.name)
    )
    return hashlib.sha256(listed.encode()).hexdigest()


def annotations_of(source: Source) -> dict[str, str]:
    """Returns the sha256 of each annotation file of a source and its parts, by path; for a folder, that of its JSON
    files."""
    found: dict[str, str] = {}
    for part in source.children.values():
        found |= annotations_of(part)
    for path in source.files if isinstance(source, IndexedSource) else ():
        found[str(path)] = files_digest(sorted(path.glob("*.json")) if path.is_dir() else [path])
    return found


def questions_of(source: Source) -> dict[str, Any]:
    """Returns how many questions a finite source asks, and a sha256 of a few of them, which distinguishes sources."""
    length = source.length or 0
    probes = sorted({place * (length - 1) // (PROBES - 1) for place in range(PROBES)}) if length else []
    text = "".join(f"{sample.id} {sample.turns[-1]}\n" for sample in map(source.__getitem__, probes))
    digest = hashlib.sha256(text.encode()).hexdigest()
    return {"source": type(source).__name__, "questions": length, "sha256": digest}


def weights_of(name: str | Path | None, state: Callable[[], Mapping[str, Tensor]]) -> dict[str, str | None]:
    """Returns where a model's weights come from, and their sha256.

    Args:
        name: A checkpoint file, the folder of a sharded checkpoint, a model folder or a packaged model; None if the
            model was made in memory.
        state: Returns the model's tensors; called only where there is no file.
    """
    if name is None:
        sums = hashlib.sha256()
        for key, value in sorted(state().items()):
            sums.update(key.encode() + value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return {"path": None, "sha256": sums.hexdigest()}
    path = Path(name)
    if path.is_file():
        return {"path": str(path), "sha256": safetensors_io.digest(path)}
    files = (
        safetensors_io.weight_files(locate(path))
        if is_folder(path)
        else [one for one in path.rglob("*") if one.is_file()]
    )
    return {"path": str(name), "sha256": files_digest(files)}
