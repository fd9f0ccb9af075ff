"""Which names of TensorRT's Python API a source file uses, and whether a bindings wheel has them."""

from __future__ import annotations

import ast
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path


def names_used(source: str, root: str = "trt") -> set[str]:
    """Attributes and keywords that a module reaches from the name `root`, and from all that is made of it.

    A variable (or attribute of self) is made of it where it is assigned an expression that starts at the root or at
    such a variable, and a parameter where its annotation does.
    """
    tree = ast.parse(source)
    known = {root}
    while True:
        found = known | set(_made(tree, known))
        if found == known:
            break
        known = found
    used: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _start(node.value) in known:
            used.add(node.attr)
        elif isinstance(node, ast.Call) and _start(node.func) in known and isinstance(node.func, ast.Attribute):
            used.update(keyword.arg for keyword in node.keywords if keyword.arg)
    return {name for name in used if not name.startswith("__")}


def _made(tree: ast.AST, known: set[str]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and _start(node.value) in known:
            yield from (name for target in node.targets if (name := _name(target)))
        elif isinstance(node, ast.arg) and node.annotation is not None and _start(node.annotation) in known:
            yield node.arg


def _start(node: ast.AST) -> str | None:
    """What an expression of calls, attributes and subscripts starts with."""
    while True:
        name = _name(node)
        if name is not None:
            return name
        if isinstance(node, ast.Attribute | ast.Subscript):
            node = node.value
        elif isinstance(node, ast.Call):
            node = node.func
        else:
            return None


def _name(node: ast.AST) -> str | None:
    """A variable, or an attribute of self."""
    if isinstance(node, ast.Name) and node.id != "self":
        return node.id
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
        return f"self.{node.attr}"
    return None


def names_missing(names: set[str], extension: bytes) -> set[str]:
    """Names that an extension module does not define.

    A name is a string of its own in there or, since linkers merge them, the end of a longer one. So it must end a
    string, and begin where a word begins somewhere: as a string, in the documentation, or after an underscore.
    """

    def defined(name: str) -> bool:
        text = name.encode()
        word = rb"(?<![A-Za-z0-9])" + text + rb"(?![A-Za-z0-9_])"
        return text + b"\0" in extension and re.search(word, extension) is not None

    return {name for name in names if not defined(name)}


def extension_of(wheel: Path) -> bytes:
    """The extension module in a bindings wheel."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [entry for entry in archive.namelist() if entry.endswith("tensorrt.so")]
        return archive.read(name)
