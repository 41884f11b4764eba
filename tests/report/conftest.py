"""What the tests of the report share."""

import pytest


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave every sentence on one line; tests of the layout say another width."""
    monkeypatch.setenv("COLUMNS", "1000")
