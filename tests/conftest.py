"""Refuse a missing or stale C engine; prove that each test leaves nothing behind."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from stroboscope._core import engine


def pytest_configure(config: pytest.Config) -> None:
    try:
        from stroboscope._core import _native
    except ImportError as error:
        pytest.exit(f"C engine missing: {error}; run pip install -e .", returncode=3)
    built = Path(_native.__file__).stat().st_mtime
    source = Path(__file__).parents[1] / "stroboscope/_core/src"
    stale = [p.name for p in source.glob("*.[ch]") if p.stat().st_mtime > built]
    if stale:
        pytest.exit(f"C engine older than {', '.join(stale)}; reinstall", returncode=3)


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Every test closes its windows."""
    assert engine.info().windows == 0

    yield

    assert engine.info().windows == 0
