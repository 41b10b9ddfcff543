"""OmegaConf's configs as plain values, from the stand-ins of their objects in a PyTorch file; OmegaConf is not needed.

An OmegaConf config is a tree of nodes. A node's state holds `_content` (of a dictionary or a list) or `_val` (of a
leaf), and `_parent`. A leaf may be an interpolation. `${model.width}` names another node from the root, `${.width}`
from the leaf's own dictionary; each further dot goes one dictionary up.
"""

import re
from typing import Any, TypeGuard

from fmboost_jax.interop.inert import InertObject

_PREFIX = "omegaconf."
_INTERPOLATION = re.compile(r"\$\{\s*(\.*)([\w.\[\]-]*)\s*\}")
# What OmegaConf writes for a value that must be given and was not.
_MISSING = "???"


def plain_values(value: Any) -> Any:
    """Return dictionaries, lists and leaves in place of OmegaConf's nodes, also inside dictionaries and lists.

    An interpolation becomes the value that it names. One that calls a resolver (`${oc.env:HOME}`) stays text, since a
    resolver is code. A missing value ("???") becomes None.

    Args:
        value: any content of `read_torch_file`.

    Raises:
        ValueError: a node inside itself, or an interpolation of a node that does not exist.
    """
    return _plain(value, ())


def find(value: Any, *keys: str) -> Any:
    """Return what nested dictionaries, OmegaConf's among them, hold under the keys; None where they lack one."""
    for key in keys:
        content = _content(value) if _is_node(value) else value
        value = content.get(key) if isinstance(content, dict) else None
    return value


def _plain(value: Any, above: tuple[int, ...]) -> Any:
    if id(value) in above:
        raise ValueError("a config that contains itself")
    above = (*above, id(value))
    content = _content(value) if _is_node(value) else value
    if isinstance(content, dict):
        return {key: _plain(item, above) for key, item in content.items()}
    if isinstance(content, (list, tuple)):
        return [_plain(item, above) for item in content]
    if not _is_node(value) or not isinstance(content, str):
        return content
    match = _INTERPOLATION.fullmatch(content)
    if match:
        return _plain(_named(value, match[1], match[2]), above)
    return None if content == _MISSING else content


def _is_node(value: Any) -> TypeGuard[InertObject]:
    return isinstance(value, InertObject) and value.qualified_name.startswith(_PREFIX) and isinstance(value.state, dict)


def _content(node: InertObject) -> Any:
    return node.state["_content"] if "_content" in node.state else node.state.get("_val")


def _named(node: InertObject, dots: str, path: str) -> Any:
    """Return the node that an interpolation names."""
    visited = 0
    found: Any = node
    while (visited < len(dots) or not dots) and _is_node(found.state.get("_parent")):
        found, visited = found.state["_parent"], visited + 1
        if visited > 1000:
            raise ValueError("a config that is its own parent")
    for part in filter(None, re.split(r"[.\[\]]+", path)):
        content = _content(found) if _is_node(found) else found
        key: Any = int(part) if isinstance(content, list) and part.isdecimal() else part
        try:
            found = content[key]
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(f"the interpolation ${{{dots}{path}}} names nothing in its config") from error
    return found
