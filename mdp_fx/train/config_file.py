"""Reading, checking and showing the settings of a training run."""

from __future__ import annotations

import dataclasses
import math
import os
import sys
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mdp_fx.errors import InputError, first_line, one_of
from mdp_fx.files import reading
from mdp_fx.train.config import TrainConfig


def read_config(
    path: str | os.PathLike[str] | None,
    overrides: Sequence[str] = (),
    further: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> TrainConfig:
    """Reads a YAML config file.

    Args:
        path: the file; without one, all keys have their defaults.
        overrides: "section.key=value" texts, which come before the file; values are written as in YAML.
        further: values by dotted key, which come before both.
        defaults: values by dotted key of what none of them names.

    Raises:
        InputError: the file is no YAML mapping, a key is unknown, or a value is of a wrong kind or out of range.
    """
    content = {} if path is None else _load(Path(path))
    where = "the settings" if path is None else str(path)
    for text in overrides:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise InputError(f"--set {text} is not of the form key=value, such as --set tune.epochs=5")
        _put(content, name.strip(), _yaml(value, f"--set {text}"), f"--set {text}")
    for name, value in (further or {}).items():
        _put(content, name, value, name)
    for name, value in (defaults or {}).items():
        if not _names(content, name):
            _put(content, name, value, name)
    return from_data(content, where)


def from_data(data: Any, where: str) -> TrainConfig:
    """The settings that parsed YAML or JSON holds.

    Raises:
        InputError: one line that names the key.
    """
    config: TrainConfig = _read_section(TrainConfig, data, where, "")
    return config


def to_data(config: TrainConfig) -> dict[str, Any]:
    """Plain data that `from_data` reads."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(inner) for name, inner in value.items()}
        return [plain(inner) for inner in value] if isinstance(value, tuple | list) else value

    data: dict[str, Any] = plain(dataclasses.asdict(config))
    return data


def to_yaml(config: TrainConfig) -> str:
    """A config file with every key, each with its meaning above it."""
    lines: list[str] = []
    for name, entry, value in _walk(config):
        depth = name.count(".")
        indent = "  " * depth
        if dataclasses.is_dataclass(value):
            lines += ["", f"# {entry.metadata['doc']}", f"{indent}{entry.name}:"]
        else:
            lines += [f"{indent}# {_meaning(entry)}", f"{indent}{entry.name}: {_written(value)}"]
    return "\n".join(lines).lstrip("\n") + "\n"


def differing(old: TrainConfig, new: TrainConfig) -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, old value, new value) of every key in which two settings differ."""
    for (name, _, before), (_, _, after) in zip(_walk(old), _walk(new), strict=True):
        if not dataclasses.is_dataclass(before) and before != after:
            yield name, before, after


def _walk(section: Any, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field[Any], Any]]:
    """(dotted key, field, value) of everything in a section; a section comes before its keys."""
    for entry in dataclasses.fields(section):
        value = getattr(section, entry.name)
        yield prefix + entry.name, entry, value
        if dataclasses.is_dataclass(value):
            yield from _walk(value, f"{prefix}{entry.name}.")


def _meaning(entry: dataclasses.Field[Any]) -> str:
    facts, limits = entry.metadata, []
    if facts["choices"]:
        limits.append(" or ".join(facts["choices"]))
    if facts["low"] is not None and facts["high"] is not None:
        limits.append(f"{facts['low']:g} to {facts['high']:g}")
    elif facts["low"]:
        limits.append(f"at least {facts['low']:g}")
    return str(facts["doc"]) + (f" ({', '.join(limits)})" if limits else "")


def _written(value: Any) -> str:
    import yaml

    value = [list(part) if isinstance(part, tuple) else part for part in value] if isinstance(value, tuple) else value
    text = str(yaml.safe_dump(value, default_flow_style=True, width=10_000))
    return text.removesuffix("\n").removesuffix("\n...")


def _load(path: Path) -> dict[str, Any]:
    with reading(path, InputError):
        content = path.read_bytes()
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no config file: it is not text") from error
    data = _yaml(text, str(path))
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise InputError(f"{path} is no config file: it should hold key: value lines, not a {type(data).__name__}")
    return data


def _yaml(text: str, where: str) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise InputError("config files need PyYAML: pip install 'mdp-fx[train]'") from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        _check_keys(node, where)
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        at = f" in line {mark.line + 1}" if mark is not None else ""
        raise InputError(f"{where}: not YAML{at}: {getattr(error, 'problem', None) or 'unreadable'}") from error
    except RecursionError as error:
        raise InputError(f"{where}: its brackets are too deep") from error
    except ValueError as error:  # such as a date that is none
        raise InputError(f"{where}: a value cannot be read: {first_line(error)}; write words in quotes") from error


def _check_keys(node: Any, where: str) -> None:
    """Raises an InputError for a key that is given twice: YAML would keep the last and drop the others.

    Args:
        node: of PyYAML, None for no content.
        where: for the message.
    """
    import yaml

    open_, seen = [node], set[int]()
    while open_:
        node = open_.pop()
        if id(node) in seen:  # an alias
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            open_ += node.value
        elif isinstance(node, yaml.MappingNode):
            lines: dict[Any, int] = {}
            for name, value in node.value:
                line = name.start_mark.line + 1
                if not isinstance(name, yaml.ScalarNode):
                    raise InputError(f"{where}: the key in line {line} is no word; is a {{{{...}}}} left to fill in?")
                if name.value in lines:
                    text = (
                        f"{name.value} is given twice, in lines {lines[name.value]} and {line}: leave one of them out"
                    )
                    raise InputError(f"{where}: {text}")
                lines[name.value] = line
                open_.append(value)


def _names(content: Any, name: str) -> bool:
    """Whether parsed YAML has a dotted key."""
    for part in name.split("."):
        if not isinstance(content, dict) or part not in content:
            return False
        content = content[part]
    return True


def _put(content: dict[str, Any], name: str, value: Any, where: str) -> None:
    *path, last = name.split(".")
    for part in path:
        inner = content.setdefault(part, {})
        if inner is None:
            inner = content[part] = {}
        if not isinstance(inner, dict):
            raise InputError(f"{where}: {part} is no section")
        content = inner
    content[last] = value


def _read_section(kind: Any, data: Any, where: str, prefix: str) -> Any:
    if data is None:
        data = {}
    if not isinstance(data, dict):
        name = prefix.removesuffix(".") or "it"
        raise InputError(f"{where}: {name} should hold key: value lines, found {_shown(data)}")
    entries = {entry.name: entry for entry in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    found: dict[str, Any] = {}
    for name, value in data.items():
        if name not in entries:
            raise InputError(f"{where}: unknown key {prefix}{name}{_near(str(name), prefix, entries)}")
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            found[name] = _read_section(hint, value, where, f"{prefix}{name}.")
        else:
            found[name] = _read_value(entries[name], hint, value, f"{where}: {prefix}{name}")
    return kind(**found)


def _near(name: str, prefix: str, entries: Mapping[str, Any]) -> str:
    """What may have been meant: a key of this section, or one of that name in another."""
    elsewhere = [key for key, _, _ in _walk(TrainConfig()) if key.rpartition(".")[2] == name]
    if elsewhere and not any(key == prefix + name for key in elsewhere):
        return f"; did you mean {elsewhere[0]!r}?"
    return one_of(name, entries, "known are")


def _read_value(entry: dataclasses.Field[Any], hint: Any, value: Any, where: str) -> Any:
    optional = isinstance(hint, types.UnionType)
    if optional:
        if value is None:
            return None
        (hint,) = [part for part in typing.get_args(hint) if part is not type(None)]
    found = _typed(hint, value, where)
    facts = entry.metadata
    if facts["choices"] and found not in facts["choices"]:
        raise InputError(f"{where}: {found!r} is unknown{one_of(str(found), facts['choices'], 'known are')}")
    low, high = facts["low"], facts["high"]
    if (low is not None and found < low) or (high is not None and found > high):
        limits = f"at least {low:g}" if high is None else f"from {low:g} to {high:g}"
        raise InputError(f"{where}: {found:g} is out of range; it must be {limits}")
    return found


def _typed(hint: Any, value: Any, where: str) -> Any:
    """A value of the type that a key has."""
    if typing.get_origin(hint) is tuple:
        parts = typing.get_args(hint)
        if not isinstance(value, list | tuple) or (parts[-1] is not Ellipsis and len(parts) != len(value)):
            raise InputError(f"{where}: should be a list, found {_shown(value)}")
        kinds = [parts[0]] * len(value) if parts[-1] is Ellipsis else parts
        return tuple(_typed(kind, part, where) for kind, part in zip(kinds, value, strict=True))
    if hint is float and isinstance(value, str):
        # YAML 1.1 takes 1e-3 for a word.
        try:
            value = float(value)
        except ValueError:
            pass
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) <= sys.float_info.max else math.inf
    if hint is str and isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise InputError(f"{where}: should be {_KINDS[hint]}, found {_shown(value)}")
    if hint is float and not math.isfinite(value):
        raise InputError(f"{where}: should be a finite number, found {value}")
    return value


def _shown(value: Any) -> str:
    return "nothing" if value is None else repr(value)[:60]


_KINDS: dict[Any, str] = {int: "a whole number", float: "a number", str: "a word", bool: "true or false"}
