"""What docs/ablations.md says beside its tables: lengths of prompts, variance of features, what an expert knows.

Give a checkpoint of the variant `upsampling_injection` of study/reduced, and the folder of an expert:

    python docs/measure_ablations.py last.ckpt experts/shapes
"""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F
from transformers import Mask2FormerForUniversalSegmentation

from sail_lightning.data.sources.laboratory import LaboratorySource
from sail_lightning.encoding.collate import pack
from sail_lightning.experts.mask2former import Mask2FormerExpert, Recipe
from sail_lightning.interfaces import Dims
from sail_lightning.module import PixelSAIL
from sail_lightning.plugins.teachers import Mask2FormerTeacher, StudentTeacher


@torch.no_grad()
def lengths(checkpoint: str) -> None:
    """Prints the lengths of patches, words and injected prompts of a model with `PromptInjection`."""
    model = PixelSAIL.load_from_checkpoint(checkpoint, weights_only=True).eval()
    source = LaboratorySource("test", samples=16, tasks={"vres": 1.0}, max_objects=4)
    batch = pack([model.encoder.encode(source[number]) for number in range(16)])
    backbone = model.model.backbone
    patches = backbone.embed_patches(batch.patches, batch.grids)
    words = backbone.embed_tokens(batch.ids)
    prompts = model.model.prompt_encoder.proj(backbone.embed_tokens(torch.tensor(model.tokens.prompt_ids)))
    print(
        f"length: patches {patches.norm(dim=1).median():.1f}, of it common to all {patches.mean(0).norm():.1f}; words "
        f"{words.norm(dim=1).median():.1f}; prompts {prompts.norm(dim=1).mean():.1f}, cosine of the first two "
        f"{F.cosine_similarity(prompts[0], prompts[1], dim=0):.2f}"
    )


def variance(folder: str) -> None:
    """Prints the variance of teachers' features about the means of their channels."""
    source = LaboratorySource("test", samples=32, max_objects=4)
    images = torch.stack([torch.from_numpy(source[number].image).permute(2, 0, 1) for number in range(32)])
    for teacher in (Mask2FormerTeacher(folder), StudentTeacher("sail-tiny", "vision"), StudentTeacher("sail-tiny")):
        teacher.build(Dims(patch_size=8))
        found = teacher(images).transpose(0, 1).flatten(1).var(1).mean()
        print(f"variance of {type(teacher).__name__}'s {teacher.student_features} features: {found:.3f}")


@torch.no_grad()
def knowledge(folder: str) -> None:
    """Prints how well an expert's best mask of each object fits, and how often its class has the right attributes."""
    network = Mask2FormerForUniversalSegmentation.from_pretrained(folder)
    names = [network.config.id2label[number].split() for number in range(len(network.config.id2label))]
    source = LaboratorySource("val", samples=60, max_objects=4, tasks={"caption": 1.0})
    expert = Mask2FormerExpert(source, [" ".join(name) for name in names], Recipe(words=2))
    expert.network = network
    expert.eval()
    data = expert.dataset(source, 60)
    best, right = [], torch.zeros(2)
    for number in range(60):
        if (one := data[number]) is None:
            continue
        (found,) = expert._predicted(one.pixels[None])
        masks, wanted = found["masks"].flatten(1).float(), one.masks.flatten(1).float()
        both = wanted @ masks.T
        values, places = (both / (wanted.sum(1)[:, None] + masks.sum(1)[None] - both).clamp(min=1)).max(1)
        best += values.tolist()
        for place, label in zip(places.tolist(), one.labels.tolist(), strict=True):
            pairs = zip(names[int(found["labels"][place])], names[label], strict=True)
            right += torch.tensor([float(mine == its) for mine, its in pairs])
    colour, shape = (right / len(best)).tolist()
    print(f"{folder}: IoU of the best masks {sum(best) / len(best):.2f}, colour {colour:.2f}, shape {shape:.2f}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    lengths(sys.argv[1])
    variance(sys.argv[2])
    knowledge(sys.argv[2])
