"""From a node's frozen configuration dataclass to declared ROS parameters, and back to an instance.

Each `contract.config.param` field becomes one parameter whose descriptor carries the field's text, unit, range and
choices; a field that is itself such a dataclass becomes parameters named ``field.sub_field``. An override, from YAML or
the command line, that names no parameter fails at start with the nearest valid name.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, ParameterType
from rclpy.node import Node

from clamp_ros.contract.config import unknown_key
from clamp_ros.contract.errors import ConfigError

Config = TypeVar("Config")

_SCALARS = {
    bool: ParameterType.PARAMETER_BOOL,
    int: ParameterType.PARAMETER_INTEGER,
    float: ParameterType.PARAMETER_DOUBLE,
    str: ParameterType.PARAMETER_STRING,
}
_ARRAYS = {
    bool: ParameterType.PARAMETER_BOOL_ARRAY,
    int: ParameterType.PARAMETER_INTEGER_ARRAY,
    float: ParameterType.PARAMETER_DOUBLE_ARRAY,
    str: ParameterType.PARAMETER_STRING_ARRAY,
}
_INT64 = (-(2**63), 2**63 - 1)
# Declared by rclpy itself, some only once a publisher or subscription is made.
_RCLPY_PARAMETERS = frozenset({"use_sim_time", "start_type_description_service"})
_RCLPY_PREFIXES = ("qos_overrides.",)


def declare(node: Node, config_class: type[Config], *, settable: Collection[str] = ()) -> Config:
    """Declares the parameters of `config_class` on a node and returns its instance, with overrides applied.

    Call it once a node, and first: it refuses every override that it does not know.

    Args:
        node: the node.
        config_class: a frozen dataclass of `param` fields of type bool, int, float, str, a tuple of one of these, or
            another such dataclass. An int given for a float is accepted.
        settable: fields that may be set while the node runs; read these with `node.get_parameter`. The others are
            read-only.

    Raises:
        ConfigError: an override is unknown, of the wrong type, or outside its range.
    """
    # rclpy offers no public look at the overrides that no declaration has used up
    overrides = {name: parameter.value for name, parameter in node._parameter_overrides.items()}
    flat = dict(_flatten(config_class, "", None))
    values = _values(flat, overrides, node.get_name())
    config = _build(config_class, "", values)
    for name, (field, hint, _) in flat.items():
        descriptor = _descriptor(name, field, hint, name not in settable)
        value = list(values[name]) if isinstance(values[name], tuple) else values[name]
        node.declare_parameter(name, value, descriptor, ignore_override=True)
    return config


def configure(config_class: type[Config], overrides: Mapping[str, Any], node_name: str) -> Config:
    """What `declare` would return on a node of that name with these overrides, without a node.

    Args:
        config_class: as for `declare`.
        overrides: full parameter name to value, as plain data; lists or tuples where there are many.
        node_name: for messages.

    Raises:
        ConfigError: as `declare`.
    """
    return _build(config_class, "", _values(dict(_flatten(config_class, "", None)), overrides, node_name))


def _values(flat: Mapping[str, Any], overrides: Mapping[str, Any], node_name: str) -> dict[str, Any]:
    known = {*flat, *_RCLPY_PARAMETERS}
    for name in overrides:
        if name not in known and not name.startswith(_RCLPY_PREFIXES):
            raise unknown_key(name, flat, f"parameter of {node_name}")
    return {
        name: _coerce(name, overrides[name], hint) if name in overrides else default
        for name, (_, hint, default) in flat.items()
    }


def _flatten(config_class: Any, prefix: str, instance: Any) -> Any:
    """Yields (full name, (field, type, default)) for every scalar or tuple field."""
    hints = get_type_hints(config_class)
    for field in fields(config_class):
        default = getattr(instance, field.name) if instance is not None else _default(field)
        if is_dataclass(hints[field.name]):
            yield from _flatten(hints[field.name], f"{prefix}{field.name}.", default)
        else:
            yield prefix + field.name, (field, hints[field.name], default)


def _default(field: Field[Any]) -> Any:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return field.default


def _build(config_class: Any, prefix: str, values: Mapping[str, Any]) -> Any:
    hints = get_type_hints(config_class)
    built = {
        field.name: _build(hints[field.name], f"{prefix}{field.name}.", values)
        if is_dataclass(hints[field.name]) else values[prefix + field.name]
        for field in fields(config_class)
    }
    try:
        return config_class(**built)
    except ConfigError as error:
        if not prefix:
            raise
        raise ConfigError(f"{prefix}{error}") from None


def _item_type(hint: Any) -> tuple[type, bool]:
    """(type of an item, whether there are many of them)."""
    return (get_args(hint)[0], True) if get_origin(hint) is tuple else (hint, False)


def _coerce(name: str, value: Any, hint: Any) -> Any:
    item, many = _item_type(hint)
    expected = f"a list of {item.__name__}" if many else item.__name__
    if value is None:  # what rcl makes of an empty list
        value = ()
    given = [value] if isinstance(value, (bool, int, float, str)) else list(value)
    shown = repr(value if isinstance(value, (bool, int, float, str)) else given)
    items: tuple[Any, ...] = tuple(float(v) if item is float and type(v) is int else v for v in given)
    if many == isinstance(value, (bool, int, float, str)) or any(type(v) is not item for v in items):
        quote = "; put text in quotes" if item is str else ""
        raise ConfigError(f"{name} is {shown}, expected {expected}{quote}")
    if item is float and not all(map(math.isfinite, items)):
        raise ConfigError(f"{name} is {shown}, expected finite numbers")
    return items if many else items[0]


def _descriptor(name: str, field: Field[Any], hint: Any, read_only: bool) -> ParameterDescriptor:
    item, many = _item_type(hint)
    meta = field.metadata
    doc, unit, choices = meta.get("doc", ""), meta.get("unit", ""), meta.get("choices")
    low, high = meta.get("minimum"), meta.get("maximum")
    descriptor = ParameterDescriptor(
        name=name,
        type=(_ARRAYS if many else _SCALARS)[item],
        description=f"{doc} [{unit}]" if unit else doc,
        read_only=read_only,
    )
    if choices is not None:
        descriptor.additional_constraints = f"one of {', '.join(map(str, choices))}"
    if low is None and high is None:
        return descriptor
    if many:  # ROS has no ranges for arrays
        descriptor.additional_constraints = f"each {'' if low is None else low}..{'' if high is None else high}"
    elif item is int:
        span = (_INT64[0] if low is None else math.ceil(low), _INT64[1] if high is None else math.floor(high))
        descriptor.integer_range = [IntegerRange(from_value=span[0], to_value=span[1], step=0)]
    else:
        span = (-sys.float_info.max if low is None else low, sys.float_info.max if high is None else high)
        descriptor.floating_point_range = [
            FloatingPointRange(from_value=float(span[0]), to_value=float(span[1]), step=0.0)
        ]
    return descriptor
