"""Read a recipe or a command line into entries, and convert each by the options of an `HfArgumentParser`."""

import argparse
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser

from ftkit.compat.python import option_strings
from ftkit.errors import UserError, nearest


@dataclass
class Entry:
    """A key, its value as written (`texts`; None for a null), and the place where it was written."""

    key: str
    texts: list[str] | None
    origin: str

    @property
    def shown(self) -> str:
        return " ".join(self.texts or [])


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, which also reads `1e-3` as a number."""


_MOST_VALUES = 10_000  # values of one key: aliases of aliases could expand to billions
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), "-+0123456789"
)


def read_recipe(path: Path, errors: list[str]) -> list[Entry]:
    """The entries of a flat recipe. Scalars keep their text: `no`, `1e-3` and `007` stay as written.

    Args:
        path: the recipe.
        errors: list that errors of single lines are appended to.

    Raises:
        UserError: the file cannot be read, or is not a mapping.
    """
    try:
        root: Any = yaml.compose(path.read_text(encoding="utf-8"), Loader=_Loader)
    except FileNotFoundError:
        raise UserError(f"--config {path}: there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"--config {path}: not valid YAML: {error}") from None
    except RecursionError:
        raise UserError(
            f"--config {path}: is nested too deeply; expected lines such as `learning_rate: 0.1`"
        ) from None
    if not isinstance(root, yaml.MappingNode):
        what = "is empty" if root is None else f"holds a {root.id} where keys were expected"
        raise UserError(f"--config {path}: {what}; expected lines such as `learning_rate: 0.1`")
    entries: dict[str, Entry] = {}
    for key, value in root.value:
        origin = f"{path}:{key.start_mark.line + 1}"
        if not isinstance(key, yaml.ScalarNode):
            errors.append(f"{origin}: expected a key such as `learning_rate`, not a {key.id}")
            continue
        if key.value in entries:
            errors.append(f"{origin}: {key.value} is given twice in this file: keep one")
        try:
            entries[key.value] = Entry(key.value, _texts(value), origin)
        except (TypeError, ValueError, RecursionError, yaml.YAMLError) as error:
            errors.append(f"{origin}: {key.value}: not a mapping of plain values: {error}")
    return list(entries.values())


def _texts(value: yaml.Node) -> list[str] | None:
    """The value as command-line texts; a mapping becomes JSON."""
    if isinstance(value, yaml.ScalarNode):
        return None if value.tag == "tag:yaml.org,2002:null" else [value.value]
    if isinstance(value, yaml.SequenceNode) and all(isinstance(item, yaml.ScalarNode) for item in value.value):
        return [item.value for item in value.value]
    if _size(value, {}) > _MOST_VALUES:
        raise ValueError(
            f"it expands to more than {_MOST_VALUES:,} values, or contains itself: use fewer aliases (*name)"
        )
    return [json.dumps(yaml.load(yaml.serialize(value), Loader=_Loader))]


def _size(node: yaml.Node, known: dict[int, float]) -> float:
    """How many values a node has with all aliases expanded; infinite for a node that contains itself."""
    if id(node) not in known:
        known[id(node)] = math.inf
        inner = [] if isinstance(node, yaml.ScalarNode) else node.value
        parts = [part for item in inner for part in (item if isinstance(item, tuple) else [item])]
        known[id(node)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(node)]


def read_command_line(arguments: list[str]) -> list[Entry]:
    """The entries of `--key value …`, `--key=value` and `--flag`.

    Raises:
        UserError: a value comes before any key.
    """
    entries: list[Entry] = []
    texts: list[str] | None = None  # the values of the last key
    for argument in arguments:
        if argument.startswith("--"):
            key, equals, value = argument[2:].partition("=")
            texts = [value] if equals else []
            entries.append(Entry(key.replace("-", "_"), texts, "command line"))
        elif texts is not None:
            texts.append(argument)
        else:
            raise UserError(f"command line: {argument!r} comes before any option: expected `--key value`")
    return entries


def parse_entry(
    parser: HfArgumentParser, entry: Entry, lists: frozenset[str], nullable: frozenset[str] = frozenset()
) -> dict[str, Any]:
    """The key of an entry with its typed value; empty if a null means the default.

    The parser's option of that name sets type, choices and number of values. `argparse` itself is not run: it would
    take values that begin with a dash for options, and stop at the first error.

    Args:
        lists: keys that take one text or several, though the parser takes one.
        nullable: keys whose null means None instead of the default.

    Raises:
        ValueError: the entry is wrong; one sentence names the key, the value and the expected form.
    """
    options = option_strings(parser)
    action = options.get(f"--{entry.key}")
    if action is None or entry.key == "help":
        keys = sorted({option.dest for option in options.values()} - {"help"})
        raise ValueError(f"{entry.key}: there is no such key{nearest(entry.key, keys)}")
    if entry.texts is None or (entry.texts == ["null"] and action.type in (int, float)):
        return {action.dest: None} if entry.key in nullable else {}
    if "\0" in entry.shown:
        raise ValueError(f"{entry.key}: {entry.shown!r} contains a NUL character: remove it")
    if not entry.texts and action.nargs in (0, "?"):
        return {action.dest: action.const}
    if not entry.texts:
        raise ValueError(f"{entry.key}: needs a value")
    if action.nargs == 0:
        raise ValueError(f"{entry.key}: takes no value, not {entry.shown!r}")
    values = [_convert(action, entry.key, text) for text in entry.texts]
    if action.nargs == "+" or (len(values) > 1 and entry.key in lists):
        return {action.dest: values}
    if len(values) > 1:
        raise ValueError(f"{entry.key}: takes one value, not {len(values)}: {entry.shown!r}")
    return {action.dest: values[0]}


def _convert(action: argparse.Action, key: str, text: str) -> Any:
    convert: Any = action.type  # a function: `HfArgumentParser` registers no names of types
    try:
        value = convert(text)
    except (ValueError, TypeError, argparse.ArgumentTypeError):
        kinds: dict[type, str] = {int: "a whole number", float: "a number"}
        raise ValueError(f"{key}: {text!r} is not {kinds.get(convert, 'true or false')}") from None
    if action.choices is not None and value not in action.choices:
        valid = [str(choice) for choice in action.choices]
        raise ValueError(f"{key}: {text!r} is not one of {', '.join(valid)}{nearest(text, valid)}")
    return value
