"""The laboratory: an endless list of samples that depend only on (seed, split, index)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from heapq import merge
from itertools import count, islice
from typing import Literal, get_args, overload

import numpy as np

from sail_lightning.data.synthetic.grammar import PROMPTS, VRES_KINDS, Draft, Interviewer
from sail_lightning.data.synthetic.scenes import ALL_PAIRS, HELD_OUT, SEEN_PAIRS, Scene, draw_scene
from sail_lightning.sample import BoolMask, Prompt, Sample, Turn

Split = Literal["train", "val", "test", "compositional"]
SPLITS: tuple[str, ...] = get_args(Split)
TASKS = {"refer": 0.5, "describe": 0.15, "choice": 0.15, "caption": 0.05, "vres": 0.15}
"""Weight of each task among turns."""
KINDS = {"single": 0.5, "multi": 0.15, "none": 0.12, "ordinal": 0.1, "relation": 0.13}
"""Weight of each kind among referring turns."""
VRES = dict.fromkeys(VRES_KINDS, 1.0)
MOST_PROMPTS = 15
KINDS_TRIED = 12
SCENES_TRIED = 40


@dataclass(frozen=True)
class Laboratory:
    """Samples drawn on demand: `laboratory[index]` for any index from 0 on; iterating never ends.

    Args:
        seed: Seed of everything that is drawn.
        split: `train`, `val` and `test` share no scene and hold no pair of colour and shape in `scenes.HELD_OUT`;
            every scene of `compositional` does, and its questions are about such an object.
        size: Side of the square images in pixels.
        min_objects: Smallest number of objects per scene.
        max_objects: Most objects of a scene.
        tasks: Weight of each task; those left out are not asked.
        kinds: Weight of each kind of referring turn; `KINDS` by default.
        vres_kinds: Weight of each kind of visual-text referring turn; all alike by default.
        questions: Most turns of a sample; a scene that has no more to ask gives fewer.
        num_prompts: Ids of region prompts are below it, 1 to 15.
        prompts: Weight of each form of a region (mask, box, point); `grammar.PROMPTS` by default.

    Raises:
        ValueError: A setting is out of range or names an unknown split, task or kind.
    """

    seed: int = 0
    split: Split = "train"
    size: int = 64
    min_objects: int = 2
    max_objects: int = 5
    tasks: dict[str, float] = field(default_factory=lambda: dict(TASKS))
    kinds: dict[str, float] | None = None
    vres_kinds: dict[str, float] | None = None
    questions: int = 5
    num_prompts: int = 4
    prompts: dict[str, float] | None = None

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"unknown split {self.split!r}; take one of {', '.join(SPLITS)}")
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more, not {self.seed}")
        if self.size < 32:
            raise ValueError(f"size must be at least 32 pixels, not {self.size}: textures need them")
        if not 1 <= self.min_objects <= self.max_objects:
            raise ValueError(f"min_objects must be 1 to max_objects ({self.max_objects}), not {self.min_objects}")
        if self.questions < 1:
            raise ValueError(f"questions must be at least 1, not {self.questions}")
        if not 1 <= self.num_prompts <= MOST_PROMPTS:
            raise ValueError(f"num_prompts must lie between 1 and {MOST_PROMPTS}, not {self.num_prompts}")
        _check_weights("tasks", self.tasks, TASKS)
        if self.kinds is not None:
            _check_weights("kinds", self.kinds, KINDS)
        if self.vres_kinds is not None:
            _check_weights("vres_kinds", self.vres_kinds, VRES)
        if self.prompts is not None:
            _check_weights("prompts", self.prompts, PROMPTS)

    def __getitem__(self, index: int) -> Sample:
        """Returns the sample at an index, which is always the same.

        Raises:
            IndexError: The index is negative; an endless list has no end to count from.
        """
        return self._sample(index, None)

    def __iter__(self) -> Iterator[Sample]:
        """Yields all samples from index 0 on, without end."""
        return (self[index] for index in count())

    def take(self, n: int) -> LaboratorySlice:
        """Returns the first `n` samples as a list with a length."""
        return LaboratorySlice(self, n)

    def balanced(self, n: int) -> LaboratorySlice:
        """Returns `n` samples of one question each; their kinds rotate in the exact proportion of `tasks` and `kinds`.

        A scene that does not allow a question of the kind that is due is drawn anew.
        """
        return LaboratorySlice(replace(self, questions=1), n, tuple(islice(_rotation(self._weights()), n)))

    def _weights(self) -> dict[str, float]:
        """Returns the weight of each kind of turn over all tasks."""
        weights: dict[str, float] = {}
        for task, weight in self.tasks.items():
            parts: Mapping[str, float] = {task: 1.0}
            if task == "refer":
                parts = KINDS if self.kinds is None else self.kinds
            elif task == "vres":
                parts = VRES if self.vres_kinds is None else self.vres_kinds
            total = sum(parts.values())
            weights.update({kind: weight * part / total for kind, part in parts.items()})
        return {kind: weight for kind, weight in weights.items() if weight > 0}

    def _sample(self, index: int, kind: str | None) -> Sample:
        if index < 0:
            raise IndexError(f"index must be 0 or more, not {index}")
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, SPLITS.index(self.split), index]))
        drafts: list[Draft] = []
        for _ in range(SCENES_TRIED):
            scene, interviewer = self._scene(rng)
            if kind is None:
                drafts = self._conversation(interviewer, rng)
            else:
                draft = interviewer.ask(kind)
                drafts = [] if draft is None else [draft]
            if drafts:
                return self._assemble(scene, drafts, index)
        wanted = kind or ", ".join(self._weights())
        raise ValueError(f"no scene of sample {index} can be asked ({wanted}); raise max_objects or allow more tasks")

    def _scene(self, rng: np.random.Generator) -> tuple[Scene, Interviewer]:
        unseen = self.split == "compositional"
        pairs = ALL_PAIRS if unseen else SEEN_PAIRS
        scene = draw_scene(
            rng,
            size=self.size,
            min_objects=self.min_objects,
            max_objects=self.max_objects,
            pairs=pairs,
            required=HELD_OUT if unseen else (),
        )
        focus = [i for i, o in enumerate(scene.objects) if (o.colour, o.shape) in HELD_OUT] if unseen else None
        interviewer = Interviewer(
            scene, rng, num_prompts=self.num_prompts, pairs=pairs, focus=focus, prompts=self.prompts
        )
        return scene, interviewer

    def _conversation(self, interviewer: Interviewer, rng: np.random.Generator) -> list[Draft]:
        """Returns up to `questions` turns; a caption comes last, as it describes everything."""
        weights = self._weights()
        kinds, chances = list(weights), np.array(list(weights.values()))
        draws = rng.choice(len(kinds), size=self.questions * KINDS_TRIED, p=chances / chances.sum())
        drafts: list[Draft] = []
        for draw in draws.tolist():
            draft = interviewer.ask(kinds[draw])
            if draft is not None:
                drafts.append(draft)
            if len(drafts) == self.questions:
                break
        return sorted(drafts, key=lambda draft: draft.kind == "caption")

    def _assemble(self, scene: Scene, drafts: list[Draft], index: int) -> Sample:
        masks: list[BoolMask] = []
        prompts: list[Prompt] = []
        turns: list[Turn] = []
        for draft in drafts:
            targets = tuple(range(len(masks), len(masks) + len(draft.masks)))
            masks.extend(draft.masks)
            if draft.prompt is not None:
                prompts.append(draft.prompt)
            turns.append(Turn(draft.question, draft.answer, draft.task, targets, draft.choices))
        return Sample(
            image=scene.image,
            turns=tuple(turns),
            masks=tuple(masks),
            prompts=tuple(prompts),
            source=f"laboratory/{self.split}",
            id=f"{self.split}-{self.seed}-{index}",
            meta={"kinds": tuple(draft.kind for draft in drafts)},
        )


@dataclass(frozen=True)
class LaboratorySlice(Sequence[Sample]):
    """The first `length` samples of a laboratory; with `plan`, sample k asks one question of kind `plan[k]`."""

    laboratory: Laboratory
    length: int
    plan: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | Sequence[Sample]:
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(self.length))]
        place = index + self.length if index < 0 else index
        if not 0 <= place < self.length:
            raise IndexError(f"index {index} is out of range for {self.length} samples")
        return self.laboratory._sample(place, None if self.plan is None else self.plan[place])


def _rotation(weights: Mapping[str, float]) -> Iterator[str]:
    """Yields kinds endlessly, each as often as its weight says and spread evenly: the k-th at (k + 1/2) / weight."""

    def due(kind: str, weight: float) -> Iterator[tuple[float, str]]:
        return (((k + 0.5) / weight, kind) for k in count())

    return (kind for _, kind in merge(*(due(kind, weight) for kind, weight in weights.items())))


def _check_weights(name: str, weights: Mapping[str, float], known: Mapping[str, float]) -> None:
    for key, weight in weights.items():
        if key not in known:
            raise ValueError(f"unknown key {key!r} in {name}; take some of {', '.join(known)}")
        if weight < 0:
            raise ValueError(f"{name}.{key} must be 0 or more, not {weight}")
    if not sum(weights.values()) > 0:
        raise ValueError(f"{name} must give some weight to one of {', '.join(known)}")
