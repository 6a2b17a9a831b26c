"""Schemas and values with slow checks, as hostile users may write them, and a worker's answer to
each.
"""

from dataclasses import dataclass
from typing import Any

UNIQUE = {"properties": {"x": {"type": "array", "uniqueItems": True}}}
PATTERN = {"properties": {"x": {"pattern": "^(a+)+$"}}}
NEARLY = "a" * 60 + "!"
EXPRESSION: dict[str, Any] = {
    "$defs": {
        "Expr": {"anyOf": [{"$ref": "#/$defs/Add"}, {"$ref": "#/$defs/Mul"}, {"type": "integer"}]},
        **{
            name: {
                "type": "object",
                "properties": {
                    "op": {"const": name.lower()},
                    "left": {"$ref": "#/$defs/Expr"},
                    "right": {"$ref": "#/$defs/Expr"},
                },
                "required": ["op", "left", "right"],
            }
            for name in ("Add", "Mul")
        },
    },
    "properties": {"e": {"$ref": "#/$defs/Expr"}},
}
HOSTILE: dict[str, Any] = {
    "$defs": {
        "n": {
            "anyOf": [{"properties": {"x": {"$ref": "#/$defs/n"}}, "required": [f"r{n}"]} for n in range(12)]
        }
    },
    "$ref": "#/$defs/n",
}
MODELS: dict[str, Any] = {
    "properties": {"x": {"items": {"anyOf": [{"type": "object", "required": [f"r{n}"]} for n in range(200)]}}}
}
# 2 MB.
WIDE = {"properties": {f"p{number}": {"type": "integer", "title": "t"} for number in range(45_000)}}
# A template whose default does not fit its own pattern.
TEMPLATE = {
    "job_configuration": {"command": "{{ command }}"},
    "variables": {
        "type": "object",
        "properties": {"command": {"type": "string", "pattern": "^(a+)+$", "default": NEARLY}},
    },
}


def tree(depth: int, leaf: Any) -> Any:
    """Nested products, with a leaf at the end."""
    return leaf if depth == 0 else {"op": "mul", "left": tree(depth - 1, leaf), "right": 1}


def chain(depth: int) -> Any:
    """Nested objects."""
    return {} if depth == 0 else {"x": chain(depth - 1)}


@dataclass(frozen=True)
class Costly:
    """A schema, parameters, and the status of a request with them."""

    schema: dict[str, Any]
    parameters: dict[str, Any]
    status: int


CHECKS = {
    "uniqueItems, 40,000 objects": Costly(UNIQUE, {"x": [{"a": number} for number in range(40_000)]}, 201),
    "a recursive union, valid, depth 14": Costly(EXPRESSION, {"e": tree(14, 1)}, 201),
    "a recursive union, valid, depth 24": Costly(EXPRESSION, {"e": tree(24, 1)}, 201),
    "a recursive union, wrong leaf, depth 24": Costly(EXPRESSION, {"e": tree(24, "x")}, 409),
    "a hostile anyOf, depth 60": Costly(HOSTILE, chain(60), 409),
    "a pattern without end": Costly(PATTERN, {"x": NEARLY}, 422),
    "a schema of 2 MB": Costly(WIDE, {"p1": 1}, 201),
    "240,000 small values": Costly(
        {"properties": {"x": {"items": {"type": "integer"}}}}, {"x": [1] * 240_000}, 201
    ),
}
