"""Reads an mmengine config file as plain data.

mmengine's own lazy reading is used: an import in the config becomes a name and nothing is imported, so the official
code and its libraries need not be installed. (Modules of Python's standard library are imported.) All other statements
of the file are executed.
"""

from __future__ import annotations

import ast
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sail_lightning.compat.mmengine import standard_library_imported
from sail_lightning.errors import SailError, SailUsageError

READ_IN_TRAINING = frozenset(
    {
        *("model", "train_dataloader", "train_cfg", "optim_wrapper", "param_scheduler", "data_preprocessor"),
        *("val_dataloader", "val_cfg", "val_evaluator", "test_dataloader", "test_cfg", "test_evaluator"),
        *("default_hooks", "custom_hooks", "custom_imports", "env_cfg", "visualizer", "vis_backends", "log_level"),
        *("log_processor", "load_from", "resume", "randomness", "launcher", "default_scope", "work_dir"),
        *("experiment_name", "auto_scale_lr", "strategy", "runner_type", "compile"),
    }
)
"""Top-level names that mmengine's Runner reads; all other names are only variables for these."""


@dataclass(frozen=True)
class OfficialConfig:
    """The content of an official config.

    Args:
        path: The file.
        content: The values that training reads, by top-level name. Imported classes and functions are dotted names.
        variables: The value of every other top-level name.
        uses: For each variable that the file assigns, the names in `content` whose value is made with it.
    """

    path: Path
    content: dict[str, Any]
    variables: dict[str, Any]
    uses: dict[str, tuple[str, ...]]


def check_path(path: Path) -> None:
    """Refuses a file that is not a Python file, before anything is executed.

    Raises:
        SailUsageError: The name does not end in `.py`.
        SailError: There is no such file.
    """
    if path.suffix != ".py":
        raise SailUsageError(f"{path} is not an mmengine config: those are Python files; give a .py file")
    if not path.is_file():
        raise SailError(f"there is no config {path}; check the path")


def read(path: Path) -> OfficialConfig:
    """Executes an mmengine config and returns its content. Its base configs are executed too.

    Raises:
        SailUsageError: The name does not end in `.py`.
        SailError: The file is missing or its code fails.
    """
    from mmengine.config import Config

    check_path(path)
    try:
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source, str(path))
        with standard_library_imported():
            config = Config.fromfile(path, import_custom_modules=False, format_python_code=False)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever the code of a config raises, SystemExit included
        raise SailError(f"{path} cannot be read as an mmengine config: {_reason(error, path)}") from None
    values = config.to_dict()
    content = {key: value for key, value in values.items() if key in READ_IN_TRAINING}
    if "train_dataset" in values and "dataset" not in (content.get("train_dataloader") or {}):
        content["train_dataset"] = values["train_dataset"]
    variables = {key: value for key, value in values.items() if key not in content}
    return OfficialConfig(path, content, variables, _uses(tree, set(content)))


def _reason(error: BaseException, path: Path) -> str:
    """Returns the error's type and text on one line, with the line of the config that raised it, if it is known."""
    kind, text = type(error).__name__, " ".join(str(error).split())
    if isinstance(error, RuntimeError) and not text:  # of mmengine's lazy objects
        text = "it calls something that it imports, and imports are only names here; write the value out"
    if len(text) > 160:
        text = f"{text[:160]}..."
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == path.resolve()]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    where = f"line {line}: " if line else ""
    return f"{where}{kind}: {text}" if text else f"{where}{kind}"


def _uses(tree: ast.Module, read: set[str]) -> dict[str, tuple[str, ...]]:
    """Returns, for each name that the file assigns, the names in `read` that depend on it, directly or through
    others."""
    needs: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        for target, values in _assignments(node):
            loaded = (part.id for value in values for part in ast.walk(value) if isinstance(part, ast.Name))
            needs.setdefault(target, set()).update(loaded)
    reached: dict[str, set[str]] = {name: set() for name in needs}
    for root in sorted(read):
        queue, seen = [root], {root}
        while queue:
            new = needs.get(queue.pop(), set()) - seen
            seen |= new
            queue += new
        for name in seen - {root}:
            reached.setdefault(name, set()).add(root)
    return {name: tuple(sorted(roots)) for name, roots in reached.items() if name not in read}


def _assignments(node: ast.AST) -> Iterator[tuple[str, list[ast.expr]]]:
    """Yields the names whose values a statement sets or changes, with the expressions that it uses."""
    targets: list[ast.expr] = []
    values: list[ast.expr] = []
    if isinstance(node, ast.Assign):
        targets, values = node.targets, [node.value]
    elif isinstance(node, ast.AnnAssign | ast.AugAssign) and node.value is not None:
        targets, values = [node.target], [node.value]
    elif isinstance(node, ast.For):
        targets, values = [node.target], [node.iter]
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):  # `names.append(name)`
        targets, values = [node.func.value], [*node.args, *(keyword.value for keyword in node.keywords)]
    for target in targets:
        for part in target.elts if isinstance(target, ast.Tuple | ast.List) else [target]:
            while isinstance(part, ast.Subscript | ast.Attribute | ast.Starred):
                part = part.value
            if isinstance(part, ast.Name):
                yield part.id, [*values, *(t for t in targets if isinstance(t, ast.Subscript))]
