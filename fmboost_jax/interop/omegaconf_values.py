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
    resolver is code. A missing value ("???") becomes None. A node that is in several places is converted once, and its
    value is in all of them.

    Args:
        value: any content of `read_torch_file`.

    Raises:
        ValueError: a node inside itself, or an interpolation of a node that does not exist.
    """
    return _plain(value, (), {})


def find(value: Any, *keys: str) -> Any:
    """Return what nested dictionaries, OmegaConf's among them, hold under the keys; None where they lack one."""
    for key in keys:
        content = _content(value) if _is_node(value) else value
        value = content.get(key) if isinstance(content, dict) else None
    return value


def _plain(value: Any, above: tuple[int, ...], known: dict[int, Any]) -> Any:
    """The plain value of one node; `above` has the nodes that it is in, `known` the values of those that are done."""
    if id(value) in known:
        return known[id(value)]
    if id(value) in above:
        raise ValueError("a config that contains itself")
    above = (*above, id(value))
    content = _content(value) if _is_node(value) else value
    if isinstance(content, dict):
        found: Any = {key: _plain(item, above, known) for key, item in content.items()}
    elif isinstance(content, (list, tuple)):
        found = [_plain(item, above, known) for item in content]
    elif not _is_node(value) or not isinstance(content, str):
        found = content
    elif match := _INTERPOLATION.fullmatch(content):
        found = _plain(_named(value, match[1], match[2]), above, known)
    else:
        found = None if content == _MISSING else content
    known[id(value)] = found
    return found


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
