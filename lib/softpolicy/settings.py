"""Settings that carry their own documentation, and their size presets."""

from __future__ import annotations

import dataclasses
import numbers

import pandas as pd

SIZES = {
    "paper": {},  # every agent's own defaults
    "small": {"width": 128, "batch": 128},  # for studies on a CPU; the same for every method
}


def setting(default, doc: str):
    """A dataclass field with its meaning and its source (paper, released code, ours) attached."""
    return dataclasses.field(default=default, metadata={"doc": doc})


def require(config, **accepted: tuple[float, float]) -> None:
    """ValueError naming the first setting of `config` outside its closed range `(low, high)`, with a fraction where it
    counts something, or, of all its switches, neither True nor False (the text "off" would count as true)."""
    kinds = {f.name: f.type for f in dataclasses.fields(config)}
    for name, kind in kinds.items():
        if kind in ("bool", bool) and not isinstance(getattr(config, name), bool):
            raise ValueError(f"{config.name}.{name} must be True or False, got {getattr(config, name)!r}")
    for name, (low, high) in accepted.items():
        value = getattr(config, name)
        if kinds[name] in ("int", int) and not isinstance(value, numbers.Integral):
            raise ValueError(f"{config.name}.{name} must be a whole number, got {value}")
        if not low <= value <= high:
            raise ValueError(f"{config.name}.{name} must lie in [{low:g}, {high:g}], got {value}")


def one_of(config, **accepted: tuple) -> None:
    """ValueError naming the first setting of `config` whose value is not among those accepted."""
    for name, values in accepted.items():
        if getattr(config, name) not in values:
            raise ValueError(f"{config.name}.{name} must be {' or '.join(values)}, got '{getattr(config, name)}'")


def sized(config_class, size: str = "paper", **overrides):
    """The settings of an agent at a size of `SIZES`, some overridden; ValueError for unknown names."""
    if size not in SIZES:
        raise ValueError(f"unknown size '{size}'; accepted are {', '.join(SIZES)}")
    known = [f.name for f in dataclasses.fields(config_class)]
    if unknown := [name for name in overrides if name not in known]:
        raise ValueError(
            f"unknown setting {', '.join(unknown)} of {config_class.name}; accepted are {', '.join(known)}"
        )
    return config_class(**{**SIZES[size], **overrides})


def size_of(config) -> str:
    """The preset that the width and batch of `config` belong to, or their values in words."""
    for name in SIZES:
        preset = sized(type(config), name)
        if (preset.width, preset.batch) == (config.width, config.batch):
            return name
    return f"width {config.width}, batch {config.batch}"


def table(config_class) -> pd.DataFrame:
    """Name, default, meaning and source of each setting, for a page."""
    rows = [(f.name, f.default, f.metadata["doc"]) for f in dataclasses.fields(config_class)]
    return pd.DataFrame(rows, columns=["setting", "default", "meaning and source"]).set_index("setting")
