"""Compare a class with a protocol by signatures, because `isinstance` compares only names."""

from __future__ import annotations

import inspect
from collections.abc import Callable


def departures(kind: type, protocol: type) -> list[str]:
    """Return the methods of a protocol that a class lacks, or that cannot be called in the same way.

    A method may have more parameters than the protocol requires if they have defaults.
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
