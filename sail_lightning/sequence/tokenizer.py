"""Words to numbers: a tokenizer, and the special tokens that the model gives a meaning."""

from __future__ import annotations

import re
from functools import cached_property
from importlib.resources import as_file, files
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from sail_lightning.errors import SailError, SailUsageError
from sail_lightning.sequence import chat_template
from sail_lightning.sequence.layout import PictureLayout

PACKAGED = {"laboratory": ("sail_lightning.data.synthetic", "tokenizer.json")}
"""Tokenizers that ship with the package, by name."""


_HALF_CHARACTER = re.compile("[\ud800-\udfff]")


class Tokens:
    """A tokenizer with the model's special tokens, in one ordered table that is stored with the weights.

    `source` is a packaged name (`laboratory`), a `tokenizer.json` or a local Hugging Face folder. Special tokens that
    it lacks are added at the end (`added`), in the order `[SEG] <p> </p> <Prompt0> ... <PromptN-1>`, those of `chat`
    and `picture` first; one that has them keeps its own order.
    """

    def __init__(
        self,
        source: str | Path = "laboratory",
        num_prompts: int = 15,
        chat: chat_template.Chat = chat_template.SOLO_CHAT,
        picture: PictureLayout = PictureLayout(),  # noqa: B008 - frozen
    ) -> None:
        self.source = str(source)
        self.chat = chat
        self.tokenizer = open_tokenizer(self.source)
        self.prompts = tuple(chat_template.prompt_token(index) for index in range(num_prompts))
        self._layout_tokens = (*chat.tokens, *picture.tokens)
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
        self.stops = tuple(self.ids[token] for token in chat.stops)
        self.picture = picture.resolve(self.ids)
        self.prompt_ids = tuple(self.ids[token] for token in self.prompts)

    def __len__(self) -> int:
        return len(self.tokenizer)

    @cached_property
    def _layout(self) -> re.Pattern[str]:
        return re.compile("|".join(re.escape(token) for token in self._layout_tokens))

    def opening(self) -> list[int]:
        """Ids of what stands before a picture inside the first question."""
        return self._encode(self.chat.question_start)

    def line_break(self) -> list[int]:
        """Ids of what stands between pictures inside the first question."""
        return self._encode("\n")

    def question(self, text: str, after_picture: bool = False) -> list[int]:
        """Ids of a user turn; `after_picture`: of the part that follows a picture inside it.

        Raises:
            SailUsageError: the text contains a token that lays out sequences, such as `<vpatch>`.
        """
        return self._encode(self.chat.question(self._checked(text), after_picture))

    def answer(self, text: str) -> list[int]:
        """Ids of an answer and its end; raises as `question`."""
        return self._encode(self.chat.answer(self._checked(text)))

    def answer_prefix(self, text: str) -> list[int]:
        """Ids of how an answer begins; raises as `question`."""
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
        """Text of an answer's ids, `[SEG]`, `<p>` and `</p>` kept, layout tokens dropped."""
        layout = {self.ids[token] for token in self._layout_tokens}
        kept = [id for id in ids if id not in layout]
        return str(self.tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False)).strip()


def open_tokenizer(source: str) -> PreTrainedTokenizerFast:
    """A tokenizer by packaged name, `tokenizer.json` or local Hugging Face folder, as it is.

    Raises:
        SailError: it is missing or cannot be read.
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
