"""Objects of a type, found in the garbage collector's lists; both engines."""

import gc

import pytest

from stroboscope._core import Driver, engine
from stroboscope._core._pure import PortableDriver


class Kind:
    pass


class Derived(Kind):
    pass


@pytest.fixture(params=["this build's", "portable"])
def driver(request: pytest.FixtureRequest) -> Driver:
    return engine._driver if request.param == "this build's" else PortableDriver()


def test_objects_of_a_type_and_of_those_derived_are_found(driver: Driver) -> None:
    """Old and new ones, each once, and none that is gone."""
    made = [Kind(), Derived()]
    gc.collect()  # now they are of the oldest generation
    made.append(Kind())
    Kind()

    found = driver.instances_of(Kind, 10)

    assert sorted(map(id, found)) == sorted(map(id, made))


def test_no_more_are_found_than_were_asked_for(driver: Driver) -> None:
    """The search ends there."""
    made = [Kind() for _ in range(5)]

    assert len(driver.instances_of(Kind, 3)) == 3
    assert driver.instances_of(Kind, 0) == []
    assert len(made) == 5
