"""The tokenizer with the special tokens of the model."""

from __future__ import annotations

import re
from functools import cached_property
from importlib.resources import as_file, files
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from sail_lightning.errors import SailError, SailUsageError
from sail_lightning.sequence import chat_template
from sail_lightning.sequence.layout import ImageLayout
from sail_lightning.settings.renames import renamed

PACKAGED = {"laboratory": ("sail_lightning.data.synthetic", "tokenizer.json")}
"""Tokenizers that ship with the package, by name."""


_HALF_CHARACTER = re.compile("[\ud800-\udfff]")


class SailTokenizer:
    """A tokenizer with the model's special tokens, in one ordered vocabulary that is stored with the weights.

    Special tokens that the tokenizer lacks are added at its end (`added`): those of the chat template and of the image
    layout, then `[SEG] <p> </p> <Prompt0> ... <PromptN-1>`. Tokens that it has keep their ids.

    Args:
        source: A packaged name (`laboratory`), a `tokenizer.json` or a local Hugging Face folder.
        num_prompts: Number of `<PromptK>` tokens.
        chat: The chat template.
        image_layout: The tokens around and among the patches of an image.

    Raises:
        SailError: The tokenizer is missing or cannot be read.
    """

    def __init__(
        self,
        source: str | Path = "laboratory",
        num_prompts: int = 15,
        chat: chat_template.ChatTemplate = chat_template.SOLO_CHAT,
        image_layout: ImageLayout = ImageLayout(),  # noqa: B008 - frozen
    ) -> None:
        self.source = str(source)
        self.chat = chat
        self.tokenizer = open_tokenizer(self.source)
        self.prompts = tuple(chat_template.prompt_token(index) for index in range(num_prompts))
        self._layout_tokens = (*chat.tokens, *image_layout.tokens)
        marks = (chat_template.SEG, chat_template.PHRASE_START, chat_template.PHRASE_END)
        wanted = tuple(dict.fromkeys((*self._layout_tokens, *marks, *self.prompts)))
        known = self.tokenizer.get_vocab()
        missing = [token for token in wanted if token not in known]
        if missing:
            self.tokenizer.add_special_tokens(
                {"additional_special_tokens": missing}, replace_extra_special_tokens=False
            )
        table = self.tokenizer.get_vocab()
        self.ids = {token: table[token] for token in wanted}
        self.added = tuple(missing)
        self.seg, self.end = self.ids[chat_template.SEG], self.ids[chat.answer_end]
        self.stop_token_ids = tuple(self.ids[token] for token in chat.stops)
        self.image_layout = image_layout.resolve(self.ids)
        self.prompt_ids = tuple(self.ids[token] for token in self.prompts)

    def __len__(self) -> int:
        return len(self.tokenizer)

    @cached_property
    def _layout(self) -> re.Pattern[str]:
        return re.compile("|".join(re.escape(token) for token in self._layout_tokens))

    def image_prefix_ids(self) -> list[int]:
        """Ids of the text before the images inside the first question."""
        return self._encode(self.chat.question_start)

    def line_break(self) -> list[int]:
        """Ids of the text between images inside the first question."""
        return self._encode("\n")

    def question(self, text: str, after_image: bool = False) -> list[int]:
        """Ids of a user turn; with `after_image` only of the part that follows images inside it.

        Raises:
            SailUsageError: The text contains a token of the layout, such as `<vpatch>`.
        """
        return self._encode(self.chat.question(self._checked(text), after_image))

    def answer(self, text: str) -> list[int]:
        """Ids of an answer and its end. Raises the same error as `question`."""
        return self._encode(self.chat.answer(self._checked(text)))

    def answer_prefix(self, text: str) -> list[int]:
        """Ids of the beginning of an answer. Raises the same error as `question`."""
        return self._encode(self._checked(text))

    def _checked(self, text: str) -> str:
        if _HALF_CHARACTER.search(text):
            raise SailUsageError("a text holds half a character (a lone surrogate); correct or remove it")
        if found := self._layout.search(text):
            raise SailUsageError(f"a text may not contain {found[0]}: that token lays out the sequence; remove it")
        return text

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def decode(self, ids: list[int]) -> str:
        """The text of an answer's ids, with `[SEG]`, `<p>` and `</p>`, without layout tokens."""
        layout = {self.ids[token] for token in self._layout_tokens}
        kept = [id for id in ids if id not in layout]
        return str(self.tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False)).strip()


def open_tokenizer(source: str) -> PreTrainedTokenizerFast:
    """A tokenizer without added tokens, by packaged name, `tokenizer.json` or local Hugging Face folder.

    Raises:
        SailError: The tokenizer is missing or cannot be read.
    """
    try:
        return _read(source)
    except SailError:
        raise
    except Exception as error:  # the tokenizer library raises nothing narrower
        raise SailError(f"tokenizer {source} cannot be read ({' '.join(str(error).split())}); copy it again") from None


def _read(source: str) -> PreTrainedTokenizerFast:
    if source in PACKAGED:
        package, name = PACKAGED[source]
        with as_file(files(package) / name) as path:
            return PreTrainedTokenizerFast(tokenizer_file=str(path))
    path = Path(source)
    if path.is_dir():
        if not (path / "tokenizer_config.json").exists() and (path / "tokenizer.json").exists():
            return PreTrainedTokenizerFast(tokenizer_file=str(path / "tokenizer.json"))
        opened = AutoTokenizer.from_pretrained(str(path), local_files_only=True)
        if not isinstance(opened, PreTrainedTokenizerFast):
            raise SailError(
                f"tokenizer {source} holds no tokenizer.json, and cannot be stored with a model; convert it"
            )
        return opened
    if path.is_file():
        return PreTrainedTokenizerFast(tokenizer_file=str(path))
    raise SailError(
        f"no tokenizer {source}: give a packaged name ({', '.join(PACKAGED)}), a tokenizer.json or a folder"
    )


__getattr__ = renamed(__name__, {"Tokens": "SailTokenizer"})
