"""Compare a class with a protocol by signatures: `isinstance` compares names only."""

from __future__ import annotations

import inspect
from collections.abc import Callable


def departures(kind: type, protocol: type) -> list[str]:
    """What a class has not as the protocol has it: a method that is missing, or cannot be called in the same way.

    It may take more than the protocol asks for, where that has a default.
    """
    wanted = {name: each for name, each in vars(protocol).items() if inspect.isfunction(each) and name[0] != "_"}
    return [
        f"{kind.__name__}.{name}{inspect.signature(own) if callable(own) else ' is missing'}"
        for name, method in wanted.items()
        for own in [getattr(kind, name, None)]
        if not callable(own) or not _can_be_called_alike(own, method)
    ]


def _can_be_called_alike(own: Callable[..., object], wanted: Callable[..., object]) -> bool:
    found, asked = inspect.signature(own), inspect.signature(wanted)
    names = list(asked.parameters)
    alike = [
        (each.name, each.kind, each.default) == (one.name, one.kind, one.default)
        for each, one in zip(found.parameters.values(), asked.parameters.values(), strict=False)
    ]
    more = list(found.parameters.values())[len(names) :]
    return (
        list(found.parameters)[: len(names)] == names
        and all(alike)
        and all(each.default is not each.empty for each in more)
        and found.return_annotation == asked.return_annotation
    )
