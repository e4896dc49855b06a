"""What a run is planned for: devices, what they compute and move, and how they are connected.

Figures of GPUs are their makers' (data sheets: dense matrix products, one direction of links);
what is reached of them is assumed, see `Hardware.product_share` and `memory_share`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from tsarch.errors import Mistake, UserError

_GB = 1e9
_TERA = 1e12
_MOST = 1e30
"""Of any number, and its inverse the least: what is computed of such ones is finite."""


@dataclass(frozen=True)
class Hardware:
    """A device, of which each rank has one, and its connections."""

    name: str
    fp32_flops_s: float
    """Products in fp32 (torch doesn't use TF32 unless told to)."""
    bf16_flops_s: float
    memory_bytes_s: float
    memory_bytes: int
    """Of a device; of CPUs: of the host, which all ranks share."""
    devices_a_node: int
    node_bytes_s: float
    """Between two devices of a node, one direction."""
    network_bytes_s: float
    """Between two nodes, one direction."""
    product_share: float = 0.6
    """Of the product rates that models reach: 0.5 to 0.65 in published trainings of transformers
    on A100s and H100s."""
    memory_share: float = 0.75
    """Of the memory's rate that operations reach which only move."""
    overhead_s: float = 5e-6
    """Seconds that an operation takes beside."""
    is_cpu: bool = False
    price_an_hour: float | None = None
    """Of a device; in any currency."""

    def flops_s(self, in_bf16: bool) -> float:
        """Products that are reached."""
        return (self.bf16_flops_s if in_bf16 else self.fp32_flops_s) * self.product_share

    def bytes_s(self) -> float:
        """Memory traffic that is reached."""
        return self.memory_bytes_s * self.memory_share

    def between(self, num_ranks: int) -> float:
        """Bytes a second of a ring over so many ranks: the slowest connection in it."""
        return self.node_bytes_s if num_ranks <= self.devices_a_node else self.network_bytes_s


_LINK = 12.5 * _GB
"""100 Gbit/s, unless `--network` says otherwise."""


def _gpu(
    name: str, fp32: float, bf16: float, memory_gb_s: float, memory_gb: float, node_gb_s: float
) -> Hardware:
    return Hardware(
        name,
        fp32 * _TERA,
        bf16 * _TERA,
        memory_gb_s * _GB,
        int(memory_gb * _GB),
        8,
        node_gb_s * _GB,
        _LINK,
    )


GPUS: Mapping[str, Hardware] = {
    own.name: own
    for own in (
        _gpu("b200", 80, 2250, 8000, 180, 900),
        _gpu("h200", 67, 989, 4800, 141, 450),
        _gpu("h100", 67, 989, 3350, 80, 450),
        _gpu("a100-80g", 19.5, 312, 2039, 80, 300),
        _gpu("a100-40g", 19.5, 312, 1555, 40, 300),
        _gpu("l40s", 91.6, 362, 864, 48, 32),
        _gpu("l4", 30.3, 121, 300, 24, 32),
        _gpu("a10g", 35, 70, 600, 24, 32),
    )
}
"""Teraflops a second, GB/s of memory, GB, GB/s between the GPUs of a node."""


def hardware_named(gpu: str) -> Hardware:
    """A GPU type.

    Raises:
        UserError: it is none of those that are known.
    """
    found = GPUS.get(gpu.lower())
    if found is None:
        what = f"is none of the GPU types that are known: {', '.join(GPUS)}."
        raise UserError.single(f"--gpu {gpu}", what, "Describe another one: --hardware FILE.")
    return found


def read_hardware(path: Path) -> Hardware:
    """From a YAML file with the names of `Hardware`'s values; `base` may name a GPU type whose
    values hold where the file has none.

    Raises:
        UserError: it can't be read, or values are missing, unknown or of another kind.
    """
    from tsarch.yaml_text import read_yaml

    where = f"--hardware {path}"
    try:
        values = read_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError.single(where, f"can't be read: {error}") from None
    if not isinstance(values, dict):
        raise UserError.single(where, "is no mapping of names to values.")
    base = values.pop("base", None)
    own = {} if base is None else vars(hardware_named(str(base)))
    merged = {**own, **values}
    if mistakes := list(_mistakes(where, merged)):
        raise UserError(mistakes)
    counts = {own.name: int(merged[own.name]) for own in fields(Hardware) if own.type == "int"}
    return Hardware(**{**merged, **counts})


def _mistakes(where: str, values: Mapping[str, Any]) -> list[Mistake]:
    names = {field.name for field in fields(Hardware)}
    needed = list(fields(Hardware))[:8]
    mistakes = [
        Mistake(f"{where}: {name}", f"is unknown. Known: {', '.join(sorted(names))}, base.")
        for name in sorted(set(map(str, values)) - names)
    ]
    mistakes += [
        Mistake(f"{where}: {field.name}", "is missing.", "Give it, or a `base`.")
        for field in needed
        if field.name not in values
    ]
    for field in fields(Hardware):
        wanted, is_right = _KINDS.get(field.name) or _KINDS[str(field.type)]
        if field.name in values and not is_right(values[field.name]):
            what = f"is {values[field.name]!r}, not {wanted}."
            mistakes.append(Mistake(f"{where}: {field.name}", what))
    return mistakes


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and 1 / _MOST <= value <= _MOST


_NUMBER = f"a number above 0, from {1 / _MOST:g} to {_MOST:g}"
_KINDS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "str": ("a text", lambda value: isinstance(value, str)),
    "bool": ("true or false", lambda value: isinstance(value, bool)),
    "int": (f"a whole {_NUMBER[2:]}", lambda value: _is_number(value) and value == int(value)),
    "float": (_NUMBER, _is_number),
    "float | None": (_NUMBER, lambda value: value is None or _is_number(value)),
    "product_share": ("a share in (0, 1]", lambda value: _is_number(value) and value <= 1),
    "memory_share": ("a share in (0, 1]", lambda value: _is_number(value) and value <= 1),
}
"""Type of a value, or its name → what it must be."""


_UNITS = {"gbit": 1e9 / 8, "mbit": 1e6 / 8, "gb": 1e9, "mb": 1e6}


def network_rate(text: str) -> float:
    """Bytes a second of `100gbit`, `25Gbit/s`, `12.5GB`.

    Raises:
        UserError: it is no rate.
    """
    plain = text.lower().replace(" ", "").removesuffix("/s").removesuffix("ps")
    for unit, factor in _UNITS.items():
        try:
            number = float(plain.removesuffix(unit))
        except ValueError:
            continue
        if plain.endswith(unit) and _is_number(number * factor):
            return number * factor
    what = "is no rate of a network."
    raise UserError.single(f"--network {text}", what, "Such as 100Gbit or 12.5GB (a second).")


def with_options(hardware: Hardware, price: float | None, network: str | None) -> Hardware:
    """The same with another price or network.

    Raises:
        UserError: they are none.
    """
    if price is not None:
        if price != 0 and not _is_number(price):
            raise UserError.single(f"--price {price}", f"is not 0, nor {_NUMBER}.")
        hardware = replace(hardware, price_an_hour=price)
    return hardware if network is None else replace(hardware, network_bytes_s=network_rate(network))
