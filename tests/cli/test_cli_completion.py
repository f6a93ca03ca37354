"""Shell completion."""

from __future__ import annotations

import pytest

from omgsr_cli.cli.app import run


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("omgsr up", ["upscale"]),
        ("omgsr upscale --color-f", ["--color-fix"]),
        ("omgsr upscale --color-fix w", ["wavelet"]),
        ("omgsr upscale --tile ", ["auto", "off"]),
        # Capitals stand for a value of any kind, here a file: the shell completes it.
        ("omgsr upscale --output ", []),
    ],
)
def test_options_and_values_complete(
    line: str, offered: list[str], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_OMGSR_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(line.split(" ")) - 1))
    with pytest.raises(SystemExit) as ended:
        run([])
    assert ended.value.code == 0
    assert capfd.readouterr().out.split() == offered
