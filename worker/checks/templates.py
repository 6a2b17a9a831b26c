"""Renders jinja templates as Prefect does (``prefect.server.utilities.user_templates``): in jinja's
sandbox and without variables. Only for a process that can be ended.
"""

from collections.abc import Iterator, Mapping

from jinja2 import ChainableUndefined, TemplateSyntaxError, nodes, pass_eval_context
from jinja2.nodes import EvalContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from .jobs import Verdict

# Prefect's limits (``user_templates``).
MAX_TEMPLATE_RANGE = 100
MAX_LOOP_COUNT = 10
MAX_NESTED_LOOP_DEPTH = 2


class _SecurityError(Exception):
    """A template has more loops than Prefect allows."""


def rendered(template: str, room: int) -> Verdict:
    """A template's text, or the error in Prefect's words (``jinja_handler``).

    Args:
        room: the longest text, in characters.
    """
    try:
        _check_loops(_ENVIRONMENT.parse(template))
    except (TemplateSyntaxError, _SecurityError) as error:
        return Verdict("invalid", f"Invalid jinja: {error}")
    if "{{" not in template and "{%" not in template:
        return Verdict("text", template)
    pieces: list[str] = []
    left = room
    try:
        for piece in _ENVIRONMENT.from_string(template).generate():
            pieces.append(piece)
            left -= len(piece)
            if left < 0:
                return Verdict("costly", "its text is too long")
    except MemoryError:
        raise
    except Exception as error:
        return Verdict(
            "invalid", f"Invalid jinja: Failed to render template due to the following error: {error!r}"
        )
    return Verdict("text", "".join(pieces))


def _range(*arguments: int) -> range:
    """``_check_template_range``."""
    made = range(*arguments)
    if len(made) > MAX_TEMPLATE_RANGE:
        raise OverflowError(
            f"Range too big. The sandbox blocks ranges larger than MAX_TEMPLATE_RANGE={MAX_TEMPLATE_RANGE}."
        )
    return made


def _plain(value: object) -> object:
    """``_prepare_value_for_json``."""
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_plain, value))
    return value


@pass_eval_context
def _tojson(context: EvalContext, value: object, indent: int | None = None) -> Markup:
    policies = context.environment.policies
    arguments = policies["json.dumps_kwargs"]
    if indent is not None:
        arguments = {**arguments, "indent": indent}
    return htmlsafe_json_dumps(_plain(value), dumps=policies["json.dumps_function"], **arguments)


def _check_loops(root: nodes.Template) -> None:
    """``_validate_loop_constraints``."""
    loops = len(list(root.find_all(nodes.For)))
    if loops > MAX_LOOP_COUNT:
        raise _SecurityError(
            f"Contains {loops} for loops. Templates can contain no more than {MAX_LOOP_COUNT} for loops."
        )
    depth = max(_loop_depths(root))
    if depth > MAX_NESTED_LOOP_DEPTH:
        raise _SecurityError(
            f"Contains nested for loops at a depth of {depth}. Templates can nest for loops no more than "
            f"{MAX_NESTED_LOOP_DEPTH} loops deep."
        )


def _loop_depths(root: nodes.Node) -> Iterator[int]:
    pending = [(root, 0)]
    while pending:
        node, depth = pending.pop()
        depth += isinstance(node, nodes.For)
        yield depth
        pending += [(child, depth) for child in node.iter_child_nodes()]


_ENVIRONMENT = ImmutableSandboxedEnvironment(
    undefined=ChainableUndefined, extensions=["jinja2_humanize_extension.HumanizeExtension"]
)
_ENVIRONMENT.globals["range"] = _range
_ENVIRONMENT.filters["tojson"] = _tojson
