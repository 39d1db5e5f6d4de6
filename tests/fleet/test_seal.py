"""Signatures of what stands in Redis."""

import logging

import pytest

from stroboscope.auth.keys import generate_key
from stroboscope.fleet.seal import SEAL_CAP, Seal

ONE, TWO = generate_key(), generate_key()


def test_one_key_in_common_is_enough() -> None:
    """While keys are rotated, one host after the other."""
    old, both, new = Seal([ONE], "s/"), Seal([ONE, TWO], "s/"), Seal([TWO], "s/")

    signed = both.sign("kind", "text")

    assert all(each.holds(signed, "kind", "text") for each in (old, both, new))
    assert both.holds(old.sign("kind", "text"), "kind", "text")
    assert not new.holds(old.sign("kind", "text"), "kind", "text")
    assert len(Seal([generate_key() for _ in range(9)], "s/").sign("x")) <= SEAL_CAP


@pytest.mark.parametrize(
    "parts",
    [("kind", "tex", "t"), ("kin", "dtext"), ("kindtext",), ("kind", "text", "")],
)
def test_a_signature_is_of_these_parts_alone(parts: tuple[str, ...]) -> None:
    """However they are put together, of this service, and of this env."""
    seal = Seal([ONE], "shop/prod")
    signed = seal.sign("kind", "text")

    assert not seal.holds(signed, *parts)
    assert not Seal([ONE], "shop/test").holds(signed, "kind", "text")
    assert seal.holds(signed, "kind", "text")


@pytest.mark.parametrize("text", ["", ":", ",,", "\ud800:x", "é:é", "x" * 10_000])
def test_what_is_no_signature_is_refused(
    text: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Counted once for as long as the same stands there; the log says the first."""
    seal = Seal([ONE], "s/")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert not seal.holds(text, "kind", "text")
        assert not seal.holds(text, "kind", "other")

    assert seal.refused == 2
    assert len(caplog.messages) == 1
    assert ONE not in seal.sign("kind", "text")
