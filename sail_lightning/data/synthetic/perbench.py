"""SynthPerBench: held-out scenes of the laboratory in the files of PerBench, for the same evaluation.

The layout is PerBench's (`STBench_*.json`, `image_name` below one folder of images), the words are the laboratory's:

- captions, `[{image_name, object_annotations: [{segmentation, caption}]}]`: one object per scene;
- multiple choice, `[{image_name, mcqs: [{object, question, answer}]}]`: the region is `<Prompt0>`, the question lists
  the options, `A: red circle B: blue square`, and the answer is the right option in words;
- visual-text referring, `[{image_name, question, answer, segmentations: {tag: RLE}}]`: `obj0` in the question
  is the region that is pointed at, and `obj1` in the answer is the target; both may be one object.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sail_lightning.data.synthetic.grammar import VRES_KINDS, Draft, Interviewer
from sail_lightning.data.synthetic.laboratory import SCENES_TRIED, SPLITS, Split
from sail_lightning.data.synthetic.scenes import ALL_PAIRS, HELD_OUT, SEEN_PAIRS, Scene, draw_scene
from sail_lightning.errors import SailUsageError
from sail_lightning.image.run_lengths import encode_rle
from sail_lightning.sample import BoolMask, Mask, Prompt
from sail_lightning.sequence.chat_template import SEG, prompt_token

CAPTIONS, CHOICES, VRES = "STBench_Detailed_Caption.json", "STBench_MCQ.json", "STBench_VRES.json"
IMAGES = "images"
POINTED, MEANT = "obj0", "obj1"
"""Tags of the region in a question and of its target."""
TASKS: dict[str, tuple[str, ...]] = {CAPTIONS: ("describe",), CHOICES: ("choice",), VRES: VRES_KINDS}
"""Kinds of questions of each file, which take turns."""

OWN = 1
"""End of the seed of a scene, which differs from all seeds of the laboratory."""

Record = dict[str, Any]


@dataclass(frozen=True)
class SynthPerBench:
    """Scenes and questions that depend only on seed and split; no scene occurs in the laboratory's own splits.

    Args:
        count: Number of questions per task, each about a scene of its own.
        seed: Seed of everything that is drawn.
        split: `test`, or `compositional` with questions about pairs of shape and colour that training never shows.
        size: Side of the square images in pixels.
        max_objects: Largest number of objects per scene.

    Raises:
        SailUsageError: The count is below 1, the seed is negative, or the split is unknown.
    """

    count: int = 200
    seed: int = 0
    split: Split = "test"
    size: int = 64
    max_objects: int = 4

    def __post_init__(self) -> None:
        if self.count < 1 or self.seed < 0:
            raise SailUsageError(f"count must be at least 1 and seed at least 0, not {self.count} and {self.seed}")
        if self.split not in SPLITS:
            raise SailUsageError(f"no split {self.split!r}; take one of {', '.join(SPLITS)}")

    def write(self, folder: Path) -> list[Path]:
        """Writes images and the three files into a folder, made if missing; returns the paths of the three files."""
        (folder / IMAGES).mkdir(parents=True, exist_ok=True)
        paths = []
        for place, (name, kinds) in enumerate(TASKS.items()):
            records = []
            for number, (scene, draft) in enumerate(islice(self._questions(place, kinds), self.count)):
                name_of_image = f"{draft.task}-{number:05d}.png"
                Image.fromarray(scene.image).save(folder / IMAGES / name_of_image)
                records.append({"image_name": name_of_image, **_RECORDS[name](draft)})
            paths.append(folder / name)
            paths[-1].write_text(json.dumps(records, ensure_ascii=False) + "\n", encoding="utf-8")
        return paths

    def _questions(self, place: int, kinds: tuple[str, ...]) -> Iterator[tuple[Scene, Draft]]:
        """Yields scenes, each with a question; the kinds take turns."""
        for number, kind in enumerate(cycle(kinds)):
            entropy = [self.seed, SPLITS.index(self.split), place, number, OWN]
            rng = np.random.default_rng(entropy)
            found = (self._question(rng, kind) for _ in range(SCENES_TRIED))
            yield next(question for question in found if question is not None)

    def _question(self, rng: np.random.Generator, kind: str) -> tuple[Scene, Draft] | None:
        unseen = self.split == "compositional"
        pairs = ALL_PAIRS if unseen else SEEN_PAIRS
        required = HELD_OUT if unseen else ()
        scene = draw_scene(
            rng, size=self.size, min_objects=2, max_objects=self.max_objects, pairs=pairs, required=required
        )
        focus = [i for i, o in enumerate(scene.objects) if (o.colour, o.shape) in HELD_OUT] if unseen else None
        draft = _MaskInterviewer(scene, rng, num_prompts=1, pairs=pairs, focus=focus).ask(kind)
        return None if draft is None else (scene, draft)


class _MaskInterviewer(Interviewer):
    """Points at objects by their masks, as PerBench does."""

    def _prompt(self, index: int) -> tuple[Prompt, str]:
        self.prompted.add(index)
        number = self.ids.pop()
        return Mask(self.objects[index].mask, id=number), prompt_token(number)


def _caption(draft: Draft) -> Record:
    return {"object_annotations": [{"segmentation": encode_rle(_region(draft)), "caption": draft.answer}]}


def _choice(draft: Draft) -> Record:
    # Capitals, as PerBench has them; the laboratory's tokenizer reads both alike.
    question = re.sub(r"\b[a-d]: ", lambda letter: letter[0].upper(), draft.question)
    answer = draft.answer.rstrip(".")
    return {"mcqs": [{"object": encode_rle(_region(draft)), "question": question, "answer": answer}]}


def _vres(draft: Draft) -> Record:
    question = draft.question.replace(prompt_token(0), POINTED)
    answer = draft.answer.replace(SEG, MEANT)
    masks = {POINTED: encode_rle(_region(draft)), MEANT: encode_rle(draft.masks[0])}
    return {"question": question, "answer": answer, "segmentations": masks}


_RECORDS = {CAPTIONS: _caption, CHOICES: _choice, VRES: _vres}


def _region(draft: Draft) -> BoolMask:
    """Returns the region (H, W) bool that a question points at."""
    assert isinstance(draft.prompt, Mask) and isinstance(draft.prompt.mask, np.ndarray)
    return draft.prompt.mask
