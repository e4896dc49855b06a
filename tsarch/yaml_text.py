"""Plain values of YAML texts: no tag makes them anything else, no number or anchor huge."""

from __future__ import annotations

import re
import reprlib
from typing import Any, cast

import yaml

from tsarch.errors import one_line

_MOST_VALUES = 100_000
"""Values of a text at most, anchors written out."""
_MOST_BITS = 1000
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 200


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses duplicate keys. Numbers are those of YAML 1.2: `1e-4` is one, `010` is
    ten, and `1:30` is a text."""

    def get_single_node(self) -> yaml.Node | None:
        """The document; anchors may not make it huge, or part of itself."""
        node = super().get_single_node()
        if node is not None and _num_values(node, {}) > _MOST_VALUES:
            what = f"has more than {_MOST_VALUES:,} values once its anchors are written out"
            raise yaml.constructor.ConstructorError(None, None, what, node.start_mark)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Where PyYAML passes on what Python says of a number or date, say where it stands."""
        try:
            value = super().construct_object(node, deep)
            if isinstance(value, int) and value.bit_length() > _MOST_BITS:
                raise ValueError("it is too large")  # Python wouldn't even print it
            return value
        except (ValueError, LookupError, AttributeError) as error:
            kind = node.tag.rpartition(":")[2]
            what = f"{_SHORT.repr(node.value)} is not a valid {kind} ({one_line(error)})"
            raise yaml.constructor.ConstructorError(None, None, what, node.start_mark) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = sorted({str(key) for key in keys if keys.count(key) > 1})
        if twice:
            raise yaml.constructor.ConstructorError(
                None, None, f"key given twice: {', '.join(twice)}", node.start_mark
            )
        return cast(dict[Any, Any], super().construct_mapping(node, deep))


def _num_values(node: yaml.Node, known: dict[yaml.Node, int]) -> int:
    """Values in and below a node. (Nodes are compared by identity; 0: it is being counted.)"""
    if known.setdefault(node, 0):
        return known[node]
    below: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        below = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        below = node.value
    for part in below:
        if known.get(part) == 0:
            raise yaml.constructor.ConstructorError(
                None, None, "an anchor stands inside of what it names", part.start_mark
            )
    known[node] = 1 + sum(_num_values(part, known) for part in below)
    return known[node]


def read_yaml(text: str) -> Any:
    """Plain values of a YAML text; no tag makes it anything else.

    Raises:
        ValueError: what is wrong with it.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def write_yaml(value: Any) -> str:
    """Plain values as a YAML text that `read_yaml`, and other readers, read as the same again; keys
    in their order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """Puts texts between quotes that are a number to some reader."""


_INT, _FLOAT = (f"tag:yaml.org,2002:{kind}" for kind in ("int", "float"))
_Loader.yaml_implicit_resolvers = {
    first: [own for own in known if own[0] not in (_INT, _FLOAT)]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    _INT,
    re.compile(r"^([-+]?[0-9][0-9_]*|0b[01_]+|0o[0-7_]+|0x[0-9a-fA-F_]+)$"),
    list("-+0123456789"),
)
_Loader.add_implicit_resolver(
    _FLOAT,
    re.compile(
        r"^([-+]?([0-9][0-9_]*(\.[0-9_]*)?|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
    ),
    list("-+.0123456789"),
)


def _int(_: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    """`010` is ten."""
    text = node.value.replace("_", "")
    return int(text, 0 if text[:2] in ("0b", "0o", "0x") else 10)


_Loader.add_constructor(_INT, _int)
_Dumper.yaml_implicit_resolvers = {
    first: [*yaml.SafeDumper.yaml_implicit_resolvers.get(first, []), *known]
    for first, known in _Loader.yaml_implicit_resolvers.items()
}
