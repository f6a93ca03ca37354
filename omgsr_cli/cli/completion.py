"""What a shell offers for an option: the words that its metavar names, as `adain|wavelet|none`."""

from __future__ import annotations

from typing import Any

from typer.core import TyperOption


def offer_words(param: Any) -> None:
    """Let an option complete to the words of its metavar; what stands in capitals there is a value of any kind.

    Where no word fits, the shell goes on with its own completion, of files.
    """
    words = [word for word in (param.metavar or "").split("|") if word.islower()]
    if isinstance(param, TyperOption) and words and param._custom_shell_complete is None:
        param._custom_shell_complete = lambda ctx, param, incomplete: [w for w in words if w.startswith(incomplete)]
