"""Questions about a scene with exact answers.

All text is lower case and made from the word lists below, from which `words` takes the vocabulary. A question is asked
only if its answer is certain: descriptions are unique, positions differ by a clear margin.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple, TypeVar

import numpy as np
from scipy import ndimage

from sail_lightning.data.synthetic.scenes import ALL_PAIRS, COLOURS, SHAPES, SIZES, TEXTURES, Pair, Scene
from sail_lightning.sample import BoolMask, Box, Mask, Point, Prompt, Task

T = TypeVar("T")

ONE = (
    "please segment {}.",
    "can you segment {}?",
    "where is {}?",
    "segment {} in the picture.",
    "find {}.",
    "show me {}.",
)
"""Templates of a question about one thing."""
MANY = tuple(wording.replace("where is", "where are") for wording in ONE)
DESCRIBE = ("describe {}.", "what is {}?")
CHOICE = "which is {}? {}"
CAPTION = "describe the picture with masks."
REGION = ("segment {}.", "please segment {}.")
ALIKE = "segment the object with the same {} as {}."
ALL_ALIKE = "segment all other objects with the same {} as {}."
BESIDE = "segment {}."
NO_TARGET = "no target."
IT_IS = "it is [SEG]."
THEY_ARE = "it is [SEG] and [SEG]."
LETTERS = ("a", "b", "c", "d")
OBJECT = "object"
PLURALS = {shape: shape + ("es" if shape.endswith("s") else "s") for shape in (OBJECT, *SHAPES)}
RELATIONS = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}
"""Relations, each with the coordinate that it compares (0 is x, 1 is y) and the sign of its direction."""
EXTREMES = {"leftmost": (0, 1), "rightmost": (0, -1), "topmost": (1, 1), "bottommost": (1, -1)}
SECONDS = {"left": (0, 1), "right": (0, -1)}
SECOND = "the second {} from the {}"

ORDINAL_GAP = 0.10
"""Smallest gap between neighbours in an ordered row, as a share of the image's side."""
RELATION_GAP = 0.12
"""Margin by which an object is, or is not, on a side of another, as a share of the image's side."""
PROMPTS = {"mask": 0.4, "box": 0.3, "point": 0.3}
"""Weight of each form of a region."""

REFER_KINDS = ("single", "multi", "none", "ordinal", "relation")
VRES_KINDS = ("region", "alike", "beside")
TASK_OF: dict[str, Task] = {
    **dict.fromkeys(REFER_KINDS, "refer"),
    "describe": "describe",
    "choice": "choice",
    "caption": "caption",
    **dict.fromkeys(VRES_KINDS, "vres"),
}
"""Task that scores each kind of turn."""


class Phrase(NamedTuple):
    """A description: the attributes that it names, and None for the others."""

    size: str | None = None
    texture: str | None = None
    colour: str | None = None
    shape: str | None = None

    @property
    def words(self) -> int:
        """Number of attributes that it names."""
        return 4 - self.count(None)

    @property
    def pair(self) -> Pair | None:
        """Its colour and shape; None unless it names both."""
        return (self.colour, self.shape) if self.colour and self.shape else None

    def __str__(self) -> str:
        return " ".join([*(word for word in self[:3] if word), self.shape or OBJECT])

    def plural(self) -> str:
        """Returns the plural, such as `large red circles`."""
        return " ".join([*(word for word in self[:3] if word), PLURALS[self.shape or OBJECT]])

    def full(self) -> str:
        """Returns the form of answers, such as `a large striped red circle`; a plain texture is left out."""
        return f"a {self._replace(texture=None if self.texture == 'plain' else self.texture)}"


VALUES: tuple[tuple[str, ...], ...] = (tuple(SIZES), TEXTURES, tuple(COLOURS), SHAPES)
"""Words of each attribute, in the order of `Phrase`."""
SUBSETS = tuple(product((False, True), repeat=4))
"""Sets of attributes that a phrase may name."""


@dataclass(frozen=True, eq=False)
class Draft:
    """A turn, its masks (one per `[SEG]`) and its region, not yet numbered within a sample."""

    kind: str
    question: str
    answer: str
    masks: tuple[BoolMask, ...] = ()
    prompt: Prompt | None = None
    choices: tuple[str, ...] = ()
    about: tuple[int, ...] = ()
    """Indices of the scene's objects that the answer is about."""

    @property
    def task(self) -> Task:
        """Task that scores it."""
        return TASK_OF[self.kind]


class Interviewer:
    """Asks about one scene without repeating itself.

    Args:
        rng: Source of all random draws.
        num_prompts: Number of prompt ids; each id and each object is used once.
        pairs: Colour and shape pairs that wrong descriptions and wrong choices may name. Were an unseen pair named
            there only, training would teach that it is always wrong.
        focus: Indices of the objects that questions are about; all of them by default.
        prompts: Weight of each form of a region; `PROMPTS` by default.
    """

    def __init__(
        self,
        scene: Scene,
        rng: np.random.Generator,
        *,
        num_prompts: int = 4,
        pairs: Collection[Pair] = ALL_PAIRS,
        focus: Collection[int] | None = None,
        prompts: Mapping[str, float] | None = None,
    ) -> None:
        self.forms = list((PROMPTS if prompts is None else prompts).items())
        self.scene, self.rng, self.pairs = scene, rng, frozenset(pairs)
        self.objects = scene.objects
        self.everything = range(len(self.objects))
        self.focus = frozenset(self.everything if focus is None else focus)
        self.ids: list[int] = rng.permutation(num_prompts).tolist()
        self.prompted: set[int] = set()
        self.asked: set[str] = set()
        self.times = [0] * len(self.objects)
        self.phrases = [Phrase(o.size, o.texture, o.colour, o.shape) for o in self.objects]
        self.matches: dict[Phrase, list[int]] = {}
        for index, phrase in enumerate(self.phrases):
            for subset in SUBSETS:
                part = Phrase(*(word if named else None for word, named in zip(phrase, subset, strict=True)))
                self.matches.setdefault(part, []).append(index)
        side = scene.image.shape[0]
        self.centres = [(x / side, y / side) for x, y in (o.centre for o in self.objects)]

    def ask(self, kind: str) -> Draft | None:
        """Returns a turn of a kind (a key of `TASK_OF`); None if this scene allows no more turns of that kind."""
        draft = _MAKERS[kind](self)
        if draft is not None:
            for index in draft.about:
                self.times[index] += 1
        return draft

    # -- referring

    def single(self) -> Draft | None:
        """Asks for one object by its attributes."""
        for index in self._order(self.focus):
            phrase = self._unique(index, new=True)
            if phrase is not None:
                return self._refer("single", f"the {phrase}", [index])
        return None

    def multi(self) -> Draft | None:
        """Asks for several objects, as one mask (`all red objects`) or two (`the red circle and the blue square`)."""
        if self.rng.random() < 0.3:
            return self._two() or self._group()
        return self._group() or self._two()

    def _group(self) -> Draft | None:
        options = [
            (phrase, 0.5 if phrase.words == 0 else 2.0 / phrase.words)
            for phrase, found in self.matches.items()
            if len(found) > 1 and phrase.words <= 2
            if not self.focus.isdisjoint(found) and self._fresh(f"all {phrase}")
        ]
        if not options:
            return None
        phrase = self._weighted(options)
        self.asked.add(f"all {phrase}")
        found = self.matches[phrase]
        if self.rng.random() < 0.3:
            return self._refer("multi", f"every {phrase}", found)
        return self._refer("multi", f"all {phrase.plural()}", found, MANY)

    def _two(self) -> Draft | None:
        described = [(i, phrase) for i in self._order(self.everything) if (phrase := self._unique(i)) is not None]
        first = next((item for item in described if item[0] in self.focus), None)
        second = next((item for item in described if item is not first), None)
        if first is None or second is None:
            return None
        if self.rng.random() < 0.5:
            first, second = second, first
        text = f"the {first[1]} and the {second[1]}"
        if not self._fresh(text):
            return None
        about = (first[0], second[0])
        masks = tuple(self.objects[i].mask for i in about)
        return Draft("multi", self._pick(MANY).format(self._note(text)), THEY_ARE, masks, about=about)

    def none(self) -> Draft | None:
        """Asks for an object that is not there: its description differs from a real one in one attribute."""
        for _ in range(12):
            phrase = self.phrases[self._pick(sorted(self.focus))]
            options = [(subset, _weight(subset)) for subset in SUBSETS if any(subset)]
            subset = self._weighted(options)
            changed = self._pick([place for place, named in enumerate(subset) if named])
            words = [word if named else None for word, named in zip(phrase, subset, strict=True)]
            words[changed] = self._pick([word for word in VALUES[changed] if word != phrase[changed]])
            wrong = Phrase(*words)
            allowed = wrong.pair is None or wrong.pair in self.pairs
            if wrong not in self.matches and allowed and self._fresh(f"the {wrong}"):
                question = self._pick(ONE).format(self._note(f"the {wrong}"))
                return Draft("none", question, NO_TARGET)
        return None

    def ordinal(self) -> Draft | None:
        """Asks for an object by its position: `the leftmost circle`, `the second object from the left`."""
        options: list[tuple[str, int]] = []
        for phrase, found in self.matches.items():
            if len(found) < 2 or phrase.size or phrase.texture or phrase.words > 1:
                continue
            for word, (axis, sign) in EXTREMES.items():
                row = self._row(found, axis, sign)
                if row[1][0] - row[0][0] >= ORDINAL_GAP:
                    options.append((f"the {word} {phrase}", row[0][1]))
            for word, (axis, sign) in SECONDS.items():
                row = self._row(found, axis, sign)
                if len(row) > 2 and min(row[1][0] - row[0][0], row[2][0] - row[1][0]) >= ORDINAL_GAP:
                    options.append((SECOND.format(phrase, word), row[1][1]))
        options = [(text, index) for text, index in options if index in self.focus and self._fresh(text)]
        if not options:
            return None
        text, index = self._pick(options)
        return self._refer("ordinal", text, [index])

    def relation(self) -> Draft | None:
        """Asks for an object by its position relative to another: `the circle left of the red square`."""
        for anchor in self._order(self.everything):
            phrase = self._unique(anchor)
            found = None if phrase is None else self._on_a_side(anchor, f"the {phrase}")
            if found is not None:
                return self._refer("relation", found[0], [found[1]])
        return None

    def _on_a_side(self, anchor: int, name: str) -> tuple[str, int] | None:
        """Returns a text `the HEAD left of NAME` that fits exactly one object by a clear margin, and that object.

        A head that needs the relation, as it matches several objects, is preferred.
        """
        options: list[tuple[tuple[str, int], float]] = []
        for relation, (axis, sign) in RELATIONS.items():
            origin = self.centres[anchor][axis]
            ahead = [sign * (centre[axis] - origin) for centre in self.centres]
            for head, found in self.matches.items():
                if head.size or head.texture:
                    continue
                others = [index for index in found if index != anchor]
                fit = [index for index in others if ahead[index] > -RELATION_GAP]
                if len(fit) != 1 or ahead[fit[0]] < RELATION_GAP or fit[0] not in self.focus:
                    continue
                text = f"the {head} {relation} {name}"
                if self._fresh(text):
                    options.append(((text, fit[0]), 1.0 if len(found) > 1 else 0.1))
        return self._weighted(options) if options else None

    # -- about a region

    def describe(self) -> Draft | None:
        """Asks what a region shows."""
        index = self._region(self.focus)
        if index is None:
            return None
        prompt, name = self._prompt(index)
        answer = f"{self.phrases[index].full()}."
        return Draft("describe", self._pick(DESCRIBE).format(name), answer, prompt=prompt, about=(index,))

    def choice(self) -> Draft | None:
        """Asks which of two to four descriptions fits a region, by colour, shape or both."""
        index = self._region(self.focus)
        if index is None:
            return None
        by_colour, by_shape = self._pick(((True, False), (False, True), (True, True), (True, True)))

        def option(pair: Pair) -> str:
            return " ".join(word for word, used in zip(pair, (by_colour, by_shape), strict=True) if used)

        right = option((self.objects[index].colour, self.objects[index].shape))
        near = sorted({option((o.colour, o.shape)) for o in self.objects} - {right})
        far = sorted({option(pair) for pair in self.pairs} - {right, *near})
        wrong: list[str] = []
        for _ in range(int(self.rng.integers(1, 4))):
            pool = near if near and (not far or self.rng.random() < 0.6) else far
            if pool:
                wrong.append(pool.pop(int(self.rng.integers(len(pool)))))
        place = int(self.rng.integers(len(wrong) + 1))
        choices = (*wrong[:place], right, *wrong[place:])
        prompt, name = self._prompt(index)
        listed = " ".join(f"{letter}: {text}" for letter, text in zip(LETTERS, choices, strict=False))
        question = CHOICE.format(name, listed)
        # In words, as the official region classes are answered; a letter alone takes a small model far longer to learn.
        return Draft("choice", question, f"{right}.", prompt=prompt, choices=choices, about=(index,))

    def region(self) -> Draft | None:
        """Asks for the mask of a region."""
        index = self._region(self.focus)
        if index is None:
            return None
        prompt, name = self._prompt(index)
        mask = self.objects[index].mask
        return Draft("region", self._pick(REGION).format(name), IT_IS, (mask,), prompt, about=(index,))

    def alike(self) -> Draft | None:
        """Asks for the other objects with a region's colour or shape."""
        options: list[tuple[int, str, list[int]]] = []
        for index in self._regions(self.everything):
            phrase = self.phrases[index]
            for word, key in (("colour", Phrase(colour=phrase.colour)), ("shape", Phrase(shape=phrase.shape))):
                others = [other for other in self.matches[key] if other != index]
                if others and not self.focus.isdisjoint([index, *others]):
                    options.append((index, word, others))
        if not options:
            return None
        index, word, others = self._pick(options)
        prompt, name = self._prompt(index)
        wording = ALIKE if len(others) == 1 else ALL_ALIKE
        return Draft("alike", wording.format(word, name), IT_IS, (self._union(others),), prompt, about=tuple(others))

    def beside(self) -> Draft | None:
        """Asks for an object by its position relative to a region."""
        for anchor in self._regions(self.everything):
            found = self._on_a_side(anchor, "{}")
            if found is not None:
                text, index = found
                prompt, name = self._prompt(anchor)
                question = BESIDE.format(text.format(name))
                return Draft("beside", question, IT_IS, (self.objects[index].mask,), prompt, about=(index,))
        return None

    # -- about everything

    def caption(self) -> Draft | None:
        """Asks for every object from left to right, each with its mask."""
        if not self._fresh(CAPTION):
            return None
        order = sorted(self.everything, key=lambda index: self.objects[index].centre)
        parts = [f"<p> {self.phrases[index].full()} </p> [SEG]" for index in order]
        masks = tuple(self.objects[index].mask for index in order)
        return Draft("caption", self._note(CAPTION), ", ".join(parts) + ".", masks, about=tuple(order))

    # -- parts

    def _refer(self, kind: str, text: str, found: Sequence[int], wordings: Sequence[str] = ONE) -> Draft:
        question = self._pick(wordings).format(self._note(text))
        return Draft(kind, question, IT_IS, (self._union(found),), about=tuple(found))

    def _union(self, found: Sequence[int]) -> BoolMask:
        if len(found) == 1:
            return self.objects[found[0]].mask
        union: BoolMask = np.logical_or.reduce([self.objects[index].mask for index in found])
        return union

    def _unique(self, index: int, new: bool = False) -> Phrase | None:
        """Returns a description that fits only this object, preferably short; with `new`, one not yet asked about."""
        options = []
        for subset in SUBSETS:
            phrase = Phrase(*(w if named else None for w, named in zip(self.phrases[index], subset, strict=True)))
            if any(subset) and len(self.matches[phrase]) == 1 and not (new and f"the {phrase}" in self.asked):
                options.append((phrase, _weight(subset)))
        return self._weighted(options) if options else None

    def _row(self, found: Sequence[int], axis: int, sign: int) -> list[tuple[float, int]]:
        return sorted((sign * self.centres[index][axis], index) for index in found)

    def _regions(self, among: Collection[int]) -> list[int]:
        """Returns objects that may still be pointed at, in random order; none if all prompt ids are used."""
        return [index for index in self._order(among) if index not in self.prompted] if self.ids else []

    def _region(self, among: Collection[int]) -> int | None:
        return next(iter(self._regions(among)), None)

    def _prompt(self, index: int) -> tuple[Prompt, str]:
        """Points at an object; returns the prompt and its name in the text."""
        self.prompted.add(index)
        number = self.ids.pop()
        mask = self.objects[index].mask
        name = f"<Prompt{number}>"
        form = self._weighted(self.forms)
        if form == "mask":
            return Mask(mask, id=number), name
        if form == "box":
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            x0, y0, x1, y1 = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
            return Box(float(x0), float(y0), float(x1), float(y1), id=number), name
        places = np.flatnonzero(_core(mask, max(1, round(mask.shape[0] / 32))))
        y, x = divmod(self._pick(places.tolist()), mask.shape[1])
        return Point(float(x), float(y), id=number), name

    def _order(self, among: Collection[int]) -> list[int]:
        """Returns objects in random order, those asked about least first."""
        return sorted(sorted(among), key=lambda index: self.times[index] + self.rng.random())

    def _fresh(self, text: str) -> bool:
        return text not in self.asked

    def _note(self, text: str) -> str:
        self.asked.add(text)
        return text

    def _pick(self, options: Sequence[T]) -> T:
        return options[int(self.rng.integers(len(options)))]

    def _weighted(self, options: Sequence[tuple[T, float]]) -> T:
        rest = self.rng.random() * sum(weight for _, weight in options)
        for option, weight in options:
            rest -= weight
            if rest < 0:
                return option
        return options[-1][0]


_MAKERS: dict[str, Callable[[Interviewer], Draft | None]] = {kind: getattr(Interviewer, kind) for kind in TASK_OF}


def _weight(subset: Iterable[bool]) -> float:
    """Returns the weight of a phrase that names these attributes; short ones, and colour with shape, weigh most."""
    named = tuple(subset)
    if named == (False, False, True, True):
        return 3.0
    return (0.0, 2.0, 1.0, 0.3, 0.1)[sum(named)]


def _core(mask: BoolMask, depth: int) -> BoolMask:
    """Returns the pixels at least `depth` steps inside a mask, or the deepest ones."""
    for _ in range(depth):
        inner = ndimage.binary_erosion(mask)
        if not inner.any():
            break
        mask = inner
    return mask
