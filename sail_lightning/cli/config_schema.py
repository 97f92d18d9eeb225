"""A JSON schema of configs and study files, by which an editor completes keys and class names and marks wrong ones.

It is made from the same signatures that the command line checks configs against (`signatures`, `registry`), so it knows
short names, arguments without `init_args`, `callbacks+`, and what `--plugins` files register. jsonargparse's own schema
(`--print_completion=jsonschema`) knows none of these, and fails on a class that a Lightning callback names.

Draft 7, which editors support best.
"""

from __future__ import annotations

import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from sail_lightning import registry
from sail_lightning.errors import SailError
from sail_lightning.settings import ranges
from sail_lightning.settings.signatures import Argument, arguments_of, is_open_ended

Schema = dict[str, Any]
NUMBER = r"^[+-]?(\d[\d_]*\.?\d*|\.\d+)([eE][+-]?\d+)?$|^[+-]?\.?(inf|nan)$"
"""Pattern of texts that are numbers: YAML 1.1 reads `3e-3` as text, which the parser converts to a number."""
PLAIN: dict[Any, Schema] = {
    int: {"type": "integer"},
    float: {"type": ["number", "string"], "pattern": NUMBER},
    bool: {"type": "boolean"},
    str: {"type": "string"},
    Path: {"type": "string"},
    type(None): {"type": "null"},
}
LISTS = (list, set, frozenset, *(getattr(typing, name).__origin__ for name in ("Sequence", "Iterable", "Collection")))


def write_schema(out: Path | None = None, plugins: Iterable[str] = ()) -> None:
    """Prints the schema of configs, or writes it to a file.

    Args:
        out: The file to write; None prints the schema.
        plugins: Files and modules with classes to include, beside those of the package.

    Raises:
        SailError: The file cannot be written.
    """
    registry.load_shipped()
    registry.discover(plugins)
    text = json.dumps(config_schema(), indent=1) + "\n"
    if out is None:
        print(text, end="")
        return
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SailError(f"{out} cannot be written: {error.strerror}") from None
    print(f"{out}: put '# yaml-language-server: $schema={out}' at the top of a config")


def config_schema() -> Schema:
    """Returns the schema of a config, and of a study if the file has `variants`, with all classes registered so far."""
    from sail_lightning.cli.lightning_cli import PLAIN as SINGLE_KEYS
    from sail_lightning.cli.lightning_cli import SECTIONS

    maker = _Maker()
    properties: Schema = {name: maker.section(cls) for name, cls in SECTIONS.items()}
    properties |= {name: {} for name in SINGLE_KEYS}
    text_or_null: Schema = {"type": ["string", "null"]}
    properties |= {"name": text_or_null, "runs": {"type": "string"}, "ckpt_path": text_or_null}
    properties["plugins"] = {"type": ["string", "array", "null"], "items": {"type": "string"}}
    properties["seed_everything"] = {"type": ["integer", "boolean"]}
    run: Schema = {
        "type": "object",
        "properties": properties,
        # `model.upsampler: X` at the top level; its parts are checked by the command.
        "patternProperties": {rf"^({'|'.join(SECTIONS)})\.": {}},
        "additionalProperties": False,
    }
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Config of sail-lightning",
        "if": {"type": "object", "required": ["variants"]},
        "then": {"$ref": "#/definitions/study"},
        "else": {"$ref": "#/definitions/config"},
        "definitions": {"config": run, "study": _study(), **maker.definitions},
    }


def _study() -> Schema:
    """Returns the schema of a study file."""
    from sail_lightning.ablation.study import KEYS

    patch: Schema = {"anyOf": [{"$ref": "#/definitions/config"}, {"type": "null"}]}
    patches: Schema = {"type": ["object", "null"], "additionalProperties": patch}
    properties: Schema = {key: {"description": wanted} for key, (_, wanted, _) in KEYS.items()}
    properties |= {"base": patch, "variants": patches, "evaluate": patches}
    return {"type": "object", "properties": properties, "additionalProperties": False}


class _Maker:
    """Makes schemas of types; those of swap points and their classes are kept in `definitions`, each once."""

    def __init__(self) -> None:
        self.definitions: Schema = {}

    def section(self, cls: type) -> Schema:
        """Returns the schema of an object whose keys are the arguments of a class."""
        return {"type": ["object", "null"], **self._arguments(arguments_of(cls), is_open_ended(cls))}

    def _arguments(self, arguments: Mapping[str, Argument], open_ended: bool) -> Schema:
        properties: Schema = {}
        for name, one in arguments.items():
            schema = self.value(one.hint)
            if one.help:
                schema = {**schema, "description": one.help} if "$ref" not in schema else _described(schema, one.help)
            if isinstance(one.default, int | float | str | bool) and "$ref" not in schema:
                schema = {**schema, "default": one.default}
            properties[name] = schema
            if _adds_up(one.hint):
                properties[f"{name}+"] = schema
        return {"properties": properties, "additionalProperties": open_ended}

    def value(self, hint: Any) -> Schema:
        """Returns the schema of the values of a type; {} accepts anything, for types that only the parser checks."""
        origin, inner = typing.get_origin(hint), typing.get_args(hint)
        if hint in PLAIN:
            return dict(PLAIN[hint])
        if ranges.is_range(hint):
            return {**PLAIN[hint.base], **ranges.schema_limits(hint)}
        if origin is Literal:
            return {"enum": list(inner)}
        if origin in (typing.Union, types.UnionType):
            return _any_of([self.value(part) for part in inner])
        if inspect.isclass(hint) and registry.is_swap_point(hint):
            return self.swap_point(hint)
        if origin is typing.get_origin(Callable[[], Any]):
            made = inner[1] if inner else None
            if made is None or not registry.is_swap_point(made):
                return {}
            return self.swap_point(made, given_arguments(hint))
        if origin is tuple and inner and inner[-1] is not Ellipsis:
            items = [self.value(part) for part in inner]
            return {"type": "array", "items": items, "minItems": len(items), "maxItems": len(items)}
        if origin in LISTS or origin is tuple:
            return {"type": "array", "items": self.value(inner[0]) if inner else {}}
        if origin in (dict, typing.Mapping.__origin__):  # type: ignore[attr-defined]
            return {"type": "object", "additionalProperties": self.value(inner[1]) if inner else {}}
        return {}

    def swap_point(self, base: type, given: int = 0) -> Schema:
        """Returns the schema of a choice at a swap point: a class name, a class name with arguments, or arguments of
        the class that was chosen before.

        Args:
            base: The base class of the swap point.
            given: How many leading arguments the model fills in, as for its optimiser.
        """
        point = registry.SWAP_POINTS[base]
        if point.name not in self.definitions:
            self.definitions[point.name] = {}  # a class may hold another of its swap point, as a mixture does
            self.definitions[point.name].update(self._swap_point(point, given))
        return {"$ref": f"#/definitions/{point.name}"}

    def _swap_point(self, point: registry.SwapPoint, given: int) -> Schema:
        names = list(point.members)
        name_or_path: Schema = {"anyOf": [{"enum": names}, {"type": "string", "pattern": r"[./]"}]}
        rules: list[Schema] = []
        every: dict[str, Argument] = {}
        for name, cls in point.members.items():
            arguments = dict(list(arguments_of(cls).items())[given:])
            every |= arguments
            written = self._arguments(arguments, is_open_ended(cls))
            self.definitions[f"{point.name}.{name}"] = {
                "description": registry.summary(cls),
                "properties": {
                    "class_path": {},
                    "init_args": {"type": ["object", "null"], **written},
                    "dict_kwargs": {"type": "object"},
                    **written["properties"],
                },
                "additionalProperties": is_open_ended(cls),
            }
            rules.append(
                {
                    "if": {"properties": {"class_path": {"pattern": rf"^(.*\.)?{re.escape(name)}$"}}},
                    "then": {"$ref": f"#/definitions/{point.name}.{name}"},
                }
            )
        known = {"enum": [*every, *(f"{name}+" for name, one in every.items() if _adds_up(one.hint))]}
        return {
            "description": registry.summary(point.base),
            "type": ["string", "object"],
            "if": {"type": "string"},
            "then": name_or_path,
            "else": {
                "if": {"required": ["class_path"]},
                "then": {"properties": {"class_path": name_or_path}, "allOf": rules},
                "else": {
                    "properties": {"init_args": {"propertyNames": known}},
                    "propertyNames": {"anyOf": [{"enum": ["init_args", "dict_kwargs"]}, known]},
                },
            },
        }


def given_arguments(hint: Any) -> int:
    """Returns how many leading arguments of a class come from elsewhere, if the type is a function that makes one."""
    inner = typing.get_args(hint)
    is_function = typing.get_origin(hint) is typing.get_origin(Callable[[], Any])
    return len(inner[0]) if is_function and inner and isinstance(inner[0], list) else 0


def _adds_up(hint: Any) -> bool:
    """Whether `name+` can add to a value of this type, which is so for lists and mappings."""
    origin = typing.get_origin(hint)
    parts = typing.get_args(hint) if origin in (typing.Union, types.UnionType) else ()
    mappings = (dict, typing.Mapping.__origin__)  # type: ignore[attr-defined]
    return origin in (*LISTS, *mappings) or any(_adds_up(part) for part in parts)


def _described(schema: Schema, text: str) -> Schema:
    """Returns a schema with a description; it is wrapped, because other keys beside `$ref` are ignored."""
    return {"allOf": [schema], "description": text}


def _any_of(schemas: list[Schema]) -> Schema:
    """Returns a schema that accepts what any of several accepts; {} if one of them accepts anything."""
    if {} in schemas:
        return {}
    unique = [schema for index, schema in enumerate(schemas) if schema not in schemas[:index]]
    return unique[0] if len(unique) == 1 else {"anyOf": unique}
