"""Training of a small Mask2Former of the transformers library, as a LightningModule, and its model folder."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics.detection import MeanAveragePrecision

from sail_lightning.compat.transformers_logging import quiet_transformers
from sail_lightning.data.sources.base import Source
from sail_lightning.experts.instances import InstanceBatch, InstanceDataset, collate
from sail_lightning.experts.recipe import Recipe
from sail_lightning.image.preprocessing import IMAGE_MEAN, IMAGE_STD
from sail_lightning.image.resizing import MASK2FORMER_ASPECT, mask2former_size
from sail_lightning.training.optim import WarmupCosine

REPORT = "expert.json"
"""File in an expert's folder with its data, training time and metrics."""


def make_network(classes: Sequence[str], width: int, queries: int) -> Any:
    """Returns a Mask2Former with random weights (about 3 million at a width of 64) on a ResNet of four stages."""
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, ResNetConfig

    stages = [width // 2 * factor for factor in (1, 2, 4, 8)]
    settings: dict[str, Any] = {"out_features": [f"stage{number}" for number in (1, 2, 3, 4)]}
    backbone = ResNetConfig(
        embedding_size=stages[0],
        hidden_sizes=stages,
        depths=[2, 2, 2, 2],
        layer_type="basic",
        **settings,
    )
    with quiet_transformers():  # it warns about any backbone but Swin; others work
        config = Mask2FormerConfig(
            backbone_config=backbone,
            feature_size=width,
            mask_feature_size=width,
            hidden_dim=width,
            encoder_feedforward_dim=2 * width,
            encoder_layers=2,
            decoder_layers=4,
            num_attention_heads=4,
            dim_feedforward=4 * width,
            num_queries=queries,
            train_num_points=512,
            id2label=dict(enumerate(classes)),
            label2id={name: place for place, name in enumerate(classes)},
        )
    return Mask2FormerForUniversalSegmentation(config)


class Mask2FormerExpert(L.LightningModule):
    """Trains a Mask2Former by its own loss, which matches each mask with a query.

    Args:
        source: Source of samples with masks.
        classes: Names of the classes.
        recipe: Settings of the model and its training.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, source: Source, classes: Sequence[str], recipe: Recipe) -> None:
        super().__init__()
        self.seconds = 0.0
        """Training time in seconds, including that before a stop."""
        self.source, self.classes, self.recipe = source, list(classes), recipe
        self.network = make_network(classes, recipe.width, recipe.queries)
        self.register_buffer("mean", 255 * torch.tensor(IMAGE_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(IMAGE_STD).view(1, 3, 1, 1), persistent=False)

    def dataset(self, source: Source, count: int, seed: int | None = None) -> InstanceDataset:
        """Returns records of a source as this expert sees them; a `seed` shuffles them for training."""
        recipe = self.recipe
        sized = partial(mask2former_size, side=recipe.size)
        return InstanceDataset(source, self.classes, recipe.words, sized, count, seed)

    def train_dataloader(self) -> DataLoader[Any]:
        """Returns the batches of all steps; after a stop, from the step of the checkpoint on."""
        recipe = self.recipe
        data = self.dataset(self.source, recipe.steps * recipe.batch, recipe.seed)
        return DataLoader(data, batch_sampler=_Steps(self), num_workers=recipe.workers, collate_fn=collate)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seeds the points that the loss draws, so that a resumed run draws the same ones."""
        torch.manual_seed(hash((self.recipe.seed, self.global_step)) % 2**32)

    def training_step(self, batch: InstanceBatch, batch_idx: int) -> Tensor:
        output = self.network(
            pixel_values=self._normalised(batch.pixels),
            mask_labels=[masks.float() for masks in batch.masks],
            class_labels=batch.labels,
        )
        loss: Tensor = output.loss.squeeze()
        self.log("train/loss", loss.detach(), batch_size=len(batch.masks))
        return loss

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        lists = ([one.to(device) for one in values] for values in (batch.masks, batch.labels))
        return InstanceBatch(batch.pixels.to(device), *lists)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.recipe.lr, weight_decay=0.05)
        schedule = WarmupCosine(optimizer, self.recipe.steps, warmup_ratio=0.05)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_fit_start(self) -> None:
        self._started = time.perf_counter() - self.seconds

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["seconds"] = time.perf_counter() - self._started

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.seconds = checkpoint["seconds"]
        self._started = time.perf_counter() - self.seconds

    def on_fit_end(self) -> None:
        self.seconds = time.perf_counter() - self._started

    @torch.no_grad()
    def evaluate(self, source: Source, count: int) -> dict[str, float] | None:
        """Returns COCO's average precision of masks (`map`, `map_50`, 0 to 1) on the first `count` records of a source.

        `images` is the number of records with a mask of a known class; None is returned if there are none.
        """
        recipe, images = self.recipe, 0
        loader = DataLoader(self.dataset(source, count), recipe.batch, num_workers=recipe.workers, collate_fn=collate)
        metric = MeanAveragePrecision(iou_type="segm")
        training = self.training
        self.eval()
        for batch in loader:
            if batch is not None:
                moved = self.transfer_batch_to_device(batch, self.device, 0)
                metric.update(self._predicted(moved.pixels), _wanted(batch))
                images += len(batch.masks)
        self.train(training)
        if not images:
            return None
        found = metric.compute()
        return {"images": images, **{name: float(found[name]) for name in ("map", "map_50")}}

    def _predicted(self, pixels: Tensor) -> list[dict[str, Tensor]]:
        """Returns masks (n, H, W) bool, scores and classes for each image.

        A query's score is the probability of its best class times the mean probability of the mask's pixels, as in the
        official code.
        """
        output = self.network(pixel_values=self._normalised(pixels))
        probabilities, labels = output.class_queries_logits.softmax(-1)[..., :-1].max(-1)
        logits = F.interpolate(output.masks_queries_logits, pixels.shape[-2:], mode="bilinear", align_corners=False)
        masks = logits > 0
        mask_scores = (logits.sigmoid() * masks).sum((2, 3)) / masks.sum((2, 3)).clamp(min=1)
        scores = probabilities * mask_scores
        return [
            {"masks": mask, "scores": score, "labels": label}
            for mask, score, label in zip(masks.cpu(), scores.cpu(), labels.cpu(), strict=True)
        ]

    def _normalised(self, pixels: Tensor) -> Tensor:
        return (pixels.float() - self.mean) / self.std


class _Steps:
    """Batch sampler that starts at the step that an expert has reached.

    Its length is that of the whole training, as Lightning also counts the steps before a stop.
    """

    def __init__(self, expert: Mask2FormerExpert) -> None:
        self.expert = expert

    def __len__(self) -> int:
        return self.expert.recipe.steps

    def __iter__(self) -> Iterator[list[int]]:
        batch = self.expert.recipe.batch
        for step in range(self.expert.global_step, len(self)):
            yield list(range(step * batch, (step + 1) * batch))


def _wanted(batch: InstanceBatch) -> list[dict[str, Tensor]]:
    return [{"masks": masks, "labels": labels} for masks, labels in zip(batch.masks, batch.labels, strict=True)]


def save_folder(expert: Mask2FormerExpert, folder: Path, report: dict[str, Any]) -> None:
    """Writes the folder that `Mask2FormerTeacher` reads atomically: weights, config, image processor, report.

    Args:
        expert: Trained expert.
        folder: Folder that does not exist or is empty.
        report: Content of the report, as JSON.
    """
    from transformers import Mask2FormerImageProcessor

    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with quiet_transformers():
            expert.network.save_pretrained(draft)
        size = {"shortest_edge": expert.recipe.size, "longest_edge": round(expert.recipe.size * MASK2FORMER_ASPECT)}
        Mask2FormerImageProcessor(size=size, image_mean=list(IMAGE_MEAN), image_std=list(IMAGE_STD)).save_pretrained(
            draft
        )
        (draft / REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        # mkdtemp and the library grant access to the owner only.
        draft.chmod(0o755)
        for path in draft.glob("*.safetensors"):
            shutil.copymode(draft / "config.json", path)
        os.replace(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
