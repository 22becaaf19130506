"""Look into a PromQL expression with a parser, never with a pattern."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import promql_parser

_CHILDREN = ("expr", "lhs", "rhs", "param", "args", "vector_selector")


def nodes(expression: str) -> Iterator[Any]:
    """Yield every node of an expression.

    Raises:
        ValueError: it is not PromQL.
    """
    stack = [promql_parser.parse(expression)]
    while stack:
        node = stack.pop()
        yield node
        for name in _CHILDREN:
            child = getattr(node, name, None)
            if isinstance(child, list):
                stack += child
            elif child is not None and type(child).__module__ == "promql_parser":
                stack.append(child)


def selectors(expression: str) -> list[tuple[str, dict[str, str]]]:
    """Return the metric name and the label matchers of every selector in an expression."""
    return [
        (str(node.name), {matcher.name: matcher.value for matcher in node.matchers.matchers})
        for node in nodes(expression)
        if isinstance(node, promql_parser.VectorSelector)
    ]


def metrics(expression: str) -> set[str]:
    """Return the names of all metrics of an expression."""
    return {name for name, _ in selectors(expression)}


def functions(expression: str) -> list[tuple[str, str]]:
    """Return (function, text of its first argument) for every call."""
    return [
        (node.func.name, str(node.args[0]) if node.args else "")
        for node in nodes(expression)
        if isinstance(node, promql_parser.Call)
    ]
