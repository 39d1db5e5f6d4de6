"""A recorder that is closed again, and Perfetto's own processor."""

from collections.abc import Iterator

import pytest
from perfetto_sql import Processor, missing, processing

from stroboscope.tracing import Recorder, recorder


@pytest.fixture
def flight() -> Iterator[Recorder]:
    """The process's recorder, on; nothing is left of it after the test."""
    recorder.close()
    recorder.set_fraction(1.0)
    recorder.configure("shop", 1 << 20)
    recorder.set_flight(True)

    yield recorder

    recorder.close()
    recorder.set_fraction(1.0)


@pytest.fixture(scope="session")
def processor() -> Iterator[Processor]:
    """The real trace processor; start-up takes seconds, so there is one."""
    if lacks := missing():
        pytest.skip(f"Perfetto's trace processor needs {lacks}")
    with processing() as made:
        yield made
