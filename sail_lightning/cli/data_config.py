"""Reads configs for the `data` commands: the sources that they describe, and the encoder of their model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sail_lightning.errors import SailUsageError, refusal_within

if TYPE_CHECKING:
    from sail_lightning.data.sources import Source
    from sail_lightning.encoding.transform import Encoder

SPLITS = ("train", "val", "test")
OF_ENCODER = {"tokenizer": str, "max_side": int, "max_tokens": int}
"""Arguments of the model that set lengths, with their types; its backbone and prompt encoder set the rest."""


def read_source(
    configs: Sequence[str], split: str, plugins: Sequence[str], overrides: Sequence[str], command: str = "show"
) -> Source:
    """Returns the source `data.SPLIT` of several configs.

    Args:
        configs: Files or packaged names, as for `fit`.
        split: `train`, `val` or `test`.
        plugins: Files and modules to load, beside those that the configs name.
        overrides: Options such as `--data.train.size=128`.
        command: The command, for messages.

    Raises:
        SailUsageError: There is no such split, an argument is wrong, or an option names another section.
    """
    takes = f"data {command} takes --data.{split}.ARGUMENT=VALUE"
    return DataConfig(configs, plugins, overrides, ("data",), takes).source(split)


class DataConfig:
    """The description of data and model by several configs and options.

    Args:
        configs: Files or packaged names, as for `fit`.
        plugins: Files and modules to load, beside those that the configs name.
        overrides: Options such as `--data.train.size=128`.
        sections: The sections that options may name.
        takes: The sentence for an option that names another section.

    Raises:
        SailUsageError: There is no such config, or an option names another section.
    """

    def __init__(
        self,
        configs: Sequence[str],
        plugins: Sequence[str],
        overrides: Sequence[str],
        sections: Sequence[str] = ("data", "model"),
        takes: str = "a data command takes --data.SPLIT.ARGUMENT=VALUE and --model.ARGUMENT=VALUE",
    ) -> None:
        from sail_lightning import registry  # after --help: it takes seconds
        from sail_lightning.cli import compose

        self.configs = list(configs)
        options = [*(compose.Option("config", [name]) for name in configs), *compose.split_options(overrides)]
        given = options[len(configs) :]
        known = tuple(f"{section}." for section in sections)
        if foreign := [option.name for option in given if not option.name.startswith(known)]:
            raise SailUsageError(f"unknown option --{foreign[0]}; {takes}")
        layers = compose.read_layers(options)
        registry.discover([*plugins, *compose.plugin_sources([], layers)])
        self._config, self._left = compose.apply_options(compose.merge_layers(layers), given)

    @property
    def splits(self) -> list[str]:
        """The splits that the configs describe, of `train`, `val` and `test`."""
        return [split for split in SPLITS if self._node(f"data.{split}") is not None]

    def source(self, split: str) -> Source:
        """Returns the source of a split.

        Raises:
            SailUsageError: There is no such split, or an argument is wrong.
        """
        from sail_lightning.cli.config_validation import check_value
        from sail_lightning.data.sources import Source

        key = f"data.{split}"
        node = self._node(key)
        if node is None:
            raise SailUsageError(
                f"{', '.join(self.configs)} holds no {key}; add a data config such as -c data/laboratory"
            )
        check_value(Source, node, key)
        source: Source = instances({"data": {split: node}}, {key: Source})["data"][split]
        return source

    def encoder(self) -> Encoder | None:
        """Returns the encoder of the config's model, without making weights; None if the config has no model.

        Raises:
            SailUsageError: An argument of the model is wrong.
            SailError: The tokenizer or the backbone cannot be used here.
        """
        if self._node("model.backbone") is None:
            return None
        from sail_lightning.cli.config_validation import check_config
        from sail_lightning.interfaces import Backbone, PromptEncoder
        from sail_lightning.model.bundle import encoder_without_weights
        from sail_lightning.module import PixelSAIL

        node = self.described()["model"]
        check_config({"model": node}, {"model": PixelSAIL}, ())
        sockets = {"model.backbone": Backbone, "model.prompt_encoder": PromptEncoder}
        made = instances({"model": {key: node[key] for key in ("backbone", "prompt_encoder") if key in node}}, sockets)
        own: dict[str, Any] = {name: kind(node[name]) for name, kind in OF_ENCODER.items() if name in node}
        return encoder_without_weights(made["model"]["backbone"], made["model"]["prompt_encoder"], **own)

    def described(self) -> dict[str, Any]:
        """Returns the sections `data` and `model` with all options applied."""
        from sail_lightning.cli import compose

        whole = compose.with_options(self._config, self._left)
        return {key: whole[key] for key in ("data", "model") if isinstance(whole.get(key), dict)}

    def fingerprint(self) -> str:
        """Returns a fingerprint, which is the same text for the same settings."""
        return json.dumps(self.described(), sort_keys=True, default=str)

    def _node(self, key: str) -> Any:
        """Returns a value of the config with all options applied, None if there is none."""
        from sail_lightning.cli import compose

        left = [option for option in self._left if option.name == key or option.name.startswith(f"{key}.")]
        section, _, name = key.partition(".")
        node = compose.lookup(self._config, key)
        whole = compose.with_options({section: {} if node is None else {name: node}}, left)
        return whole[section].get(name)


def instances(config: dict[str, Any], classes: Mapping[str, type]) -> Any:
    """Returns instances of the classes that a config names at these keys, under the same keys.

    Raises:
        SailUsageError: An argument has the wrong type or is missing.
        SailError: A constructor refuses its arguments.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    from sail_lightning.cli.config_validation import explain

    parser = ArgumentParser(exit_on_error=False)
    for key, cls in classes.items():
        parser.add_subclass_arguments(cls, key, required=True)
    try:
        parsed = parser.parse_object(config)
    except ArgumentError as error:
        raise SailUsageError(explain(str(error))) from None
    try:
        return parser.instantiate(parsed)
    except ValueError as error:  # jsonargparse wraps what a constructor raises
        if fault := refusal_within(error):
            raise fault from None
        raise
