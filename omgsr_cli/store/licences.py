"""Which licences were shown to the user already: each is shown once, and when is kept."""

from __future__ import annotations

import datetime
import json
import os
from pathlib import Path

from omgsr_cli.files.atomic import partial_file

_NAME = ".licences.json"


def was_shown(store: Path, place: str, licence: str) -> bool:
    """Whether this licence of this place was shown before; a record that cannot be read is none."""
    return _load(store).get(place, {}).get("licence") == licence


def remember_shown(store: Path, place: str, licence: str) -> None:
    """Keep that a licence was shown, with today's date.

    Raises:
        OSError: it cannot be written.
    """
    shown = _load(store) | {place: {"licence": licence, "shown": datetime.date.today().isoformat()}}
    with partial_file(store / _NAME) as partial:
        partial.write_text(json.dumps(shown, indent=2) + "\n", encoding="utf-8")
        os.replace(partial, store / _NAME)


def _load(store: Path) -> dict[str, dict[str, str]]:
    try:
        found = json.loads((store / _NAME).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return {key: value for key, value in found.items() if isinstance(value, dict)} if isinstance(found, dict) else {}
