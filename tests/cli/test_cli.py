"""The command says what it found, and what was wrong with what it was given."""

from dataclasses import replace
from pathlib import Path

import pytest

from stroboscope.auth.keys import generate_key
from stroboscope.auth.tokens import Tokens
from stroboscope.cli import main
from stroboscope.cli.report import by_label
from stroboscope.formats.pprof import encode
from stroboscope.formats.profile import Frame, Profile, Sample, ValueType
from stroboscope.settings import Settings

CPU = ValueType("cpu", "nanoseconds")


def write(path: Path, *amounts: tuple[str, int]) -> str:
    samples = [
        Sample((Frame("a.py", f"f_{name}", 1, 2),), (ns,), (("endpoint", name),))
        for name, ns in amounts
    ]
    path.write_bytes(encode(Profile((CPU,), samples, CPU, 1)))
    return str(path)


def test_top_focuses_on_a_label(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As pprof does; braces need no escaping, shares are of the whole."""
    file = write(tmp_path / "p", ("/x/{id}", 3 * 10**9), ("/y", 10**9))

    assert main(["top", "--tagfocus", "endpoint=/x/{id}", file]) == 0
    out = capsys.readouterr().out
    assert "3s (75.00%) of 4s total" in out
    assert "f_/y" not in out


def test_top_focuses_on_a_function(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every option of the surface is one of the command, with the same meaning."""
    file = write(tmp_path / "p", ("/x", 3 * 10**9), ("/y", 10**9))

    assert main(["top", "--focus", "f_/y", "--tagroot", "endpoint", file]) == 0
    out = capsys.readouterr().out
    assert "f_/y" in out
    assert "f_/x" not in out


def test_top_by_label_shows_shares(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--by gives CPU by the values of a label."""
    file = write(tmp_path / "p", ("/x", 3 * 10**9), ("/y", 10**9))

    assert main(["top", "--by", "endpoint", file]) == 0
    assert "75.00%  /x" in capsys.readouterr().out


def test_top_against_a_base_shows_the_difference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--base subtracts another profile."""
    old = write(tmp_path / "old", ("/x", 10**9))
    new = write(tmp_path / "new", ("/x", 3 * 10**9))

    assert main(["top", "--base", old, new]) == 0
    assert "2s (100.00%) of 2s total" in capsys.readouterr().out


def test_wrong_use_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bad files and unknown labels exit 2, nothing found exits 1."""
    file = write(tmp_path / "p", ("/x", 1))
    bad = tmp_path / "bad"
    bad.write_bytes(b"no profile")

    assert main(["top", str(bad)]) == 2
    assert main(["top", str(tmp_path / "absent")]) == 2
    assert main(["top", "--tagfocus", "nolabel=x", file]) == 2
    assert main(["top", "--tagfocus", "endpoint=zzz", file]) == 1
    assert main(["top", "--focus", "(", file]) == 2
    assert main(["top", write(tmp_path / "empty")]) == 1
    err = capsys.readouterr().err
    assert "labels here: ['endpoint']" in err


def test_a_label_is_summed_in_what_the_profile_is_about() -> None:
    """Of `allocs` that is what was allocated, not what is in use, its last value."""
    types = (ValueType("alloc_space", "bytes"), ValueType("inuse_space", "bytes"))
    profile = Profile(
        sample_types=types,
        samples=[Sample((), (2048, 1), (("endpoint", "/a"),))],
        period_type=types[0],
        period=1,
    )

    about = replace(profile, default_sample_type="alloc_space")
    assert "2kB" in by_label(about, "endpoint")
    assert "1B" in by_label(profile, "endpoint")


def test_tokens_are_minted_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`stroboscope token` prints what the surface accepts."""
    key = generate_key()
    monkeypatch.setenv("STROBOSCOPE_KEYS", key)

    assert main(["token", "--scope", "profile", "--ttl", "1m", "--service", "s"]) == 0
    text = capsys.readouterr().out.strip()
    grant = Tokens(Settings(keys=(key,), service="s")).verify(text)
    assert grant.scopes == {"profile"}


def test_the_doctor_wants_a_key(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 1 without one, 0 with a strong one, 2 with a weak one."""
    monkeypatch.delenv("STROBOSCOPE_KEYS", raising=False)
    assert main(["doctor"]) == 1
    monkeypatch.setenv("STROBOSCOPE_KEYS", generate_key())
    assert main(["doctor"]) == 0
    monkeypatch.setenv("STROBOSCOPE_KEYS", "secret")
    assert main(["doctor"]) == 2
    assert "engine   native" in capsys.readouterr().out
