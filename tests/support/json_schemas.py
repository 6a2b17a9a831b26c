"""Makes JSON Schemas of every keyword that matters to a check, with matching values: recursive
schemas, alternatives, and invalid ones.
"""

from typing import Any

from hypothesis import strategies as st

NAMES = ("a", "b", "c")
TYPES = ("string", "integer", "number", "object", "array", "null", "boolean")

LEAVES: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 3),
    st.sampled_from([0.0, -0.0, 1.0, 2.5, 1e22, 10**22, "", "a", "ab", "b1", "a" * 20]),
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(NAMES), inner, max_size=3)
    ),
    max_leaves=8,
)


def _keywords(inner: st.SearchStrategy[Any]) -> dict[str, st.SearchStrategy[Any]]:
    """The possible values of each keyword."""
    names = st.lists(st.sampled_from(NAMES), max_size=2, unique=True)
    # Prefect breaks on true and false here.
    objects = inner.map(lambda made: {} if made is True else {"not": {}} if made is False else made)
    properties = st.dictionaries(st.sampled_from(NAMES), objects, max_size=3)
    by_name = st.dictionaries(st.sampled_from(NAMES), inner, max_size=3)
    several = st.lists(inner, min_size=1, max_size=3)
    patterns = st.sampled_from(["^a", "b$", "^(a+)+$", "[0-9]", "a|b"])
    count = st.integers(0, 2)
    return {
        "type": st.one_of(
            st.sampled_from(TYPES), st.lists(st.sampled_from(TYPES), min_size=1, max_size=2, unique=True)
        ),
        "properties": properties,
        "required": names,
        "additionalProperties": st.one_of(st.booleans(), inner),
        "items": inner,
        "prefixItems": several,
        "anyOf": several,
        "oneOf": several,
        "allOf": several,
        "not": inner,
        "if": inner,
        "then": inner,
        "else": inner,
        "contains": inner,
        "minContains": count,
        "dependentSchemas": by_name,
        "dependentRequired": st.dictionaries(st.sampled_from(NAMES), names, max_size=2),
        "propertyNames": inner,
        "patternProperties": st.dictionaries(patterns, inner, max_size=1),
        "unevaluatedProperties": st.one_of(st.booleans(), inner),
        "unevaluatedItems": st.one_of(st.booleans(), inner),
        "pattern": patterns,
        "uniqueItems": st.booleans(),
        "enum": st.lists(LEAVES, max_size=3),
        "const": VALUES,
        "minLength": count,
        "maxItems": count,
        "minProperties": count,
        "minimum": count,
        "multipleOf": st.sampled_from([1, 2, 0.5]),
        "default": LEAVES,
        "format": st.sampled_from(["date", "uuid", "email"]),
        "title": st.text(max_size=2),
    }


@st.composite
def _subschema(draw: st.DrawFn, inner: st.SearchStrategy[Any]) -> dict[str, Any]:
    """Few keywords, so that some values fit. Keywords that are not drawn cost nothing."""
    keywords = _keywords(inner)
    chosen = draw(st.lists(st.sampled_from(sorted(keywords)), max_size=4, unique=True))
    return {name: draw(keywords[name]) for name in chosen}


_REFERENCES = st.sampled_from(
    [
        {"$ref": "#/$defs/a"},
        {"$ref": "#/$defs/b"},
        {"$ref": "#/definitions/c"},
        {"$ref": "#"},
        {"$ref": "#/gone"},
    ]
)
_SUBSCHEMAS: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        st.booleans(),
        _REFERENCES,
        st.sampled_from([{"type": each} for each in TYPES]),
        st.builds(lambda value: {"const": value}, LEAVES),
    ),
    _subschema,
    max_leaves=8,
)
_DEFINITIONS = st.dictionaries(st.sampled_from(NAMES), _SUBSCHEMAS, min_size=1, max_size=3)


def _rooted(schema: dict[str, Any], definitions: dict[str, Any], old: dict[str, Any]) -> dict[str, Any]:
    # Prefect breaks on true and false among these.
    old = {name: each if isinstance(each, dict) else {} for name, each in old.items()}
    return {**schema, "$defs": definitions, "definitions": old}


SCHEMAS: st.SearchStrategy[dict[str, Any]] = st.builds(
    _rooted, st.fixed_dictionaries({}, optional=_keywords(_SUBSCHEMAS)), _DEFINITIONS, _DEFINITIONS
)
