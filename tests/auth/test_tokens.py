"""Keys and tokens: strong, of one kind, for one service, for a while."""

import hashlib
import time

import pytest
from asking import (
    KEY,
    SETTINGS,
    FakeClock,
    token,
)
from hypothesis import given
from hypothesis import strategies as st
from itsdangerous import URLSafeSerializer

from stroboscope.auth.keys import check_keys, generate_key
from stroboscope.auth.tokens import SALT, Tokens
from stroboscope.errors import SettingsError, Unauthenticated, WeakKeyError
from stroboscope.settings import Settings


@pytest.mark.parametrize(
    "key", ["", "secret", "a" * 64, "by-dev" * 10, "0123456789abcdef" * 2, "1" * 80]
)
def test_h02_weak_keys_are_refused(key: str) -> None:
    """Short, regular and well-known keys raise at start, without showing the key."""
    with pytest.raises(WeakKeyError) as refused:
        check_keys((key,))
    assert not key or key not in str(refused.value)


def test_h02_generated_keys_are_strong() -> None:
    """What we make we accept, so does 32 bytes in hexadecimal."""
    for _ in range(300):
        check_keys((generate_key(),))
    check_keys((hashlib.sha256(b"x").hexdigest(),))


def test_h07_tokens_expire_to_the_second() -> None:
    """Valid one second before, not one after; not from the future."""
    clock = FakeClock()
    tokens = Tokens(SETTINGS, clock)
    text = tokens.mint(["profile"], 60)

    clock.now_s += 59
    assert tokens.verify(text).scopes == {"profile"}
    for moment in (+2, -200):
        clock.now_s += moment
        with pytest.raises(Unauthenticated):
            tokens.verify(text)


def test_h07_a_token_says_when_it_ends() -> None:
    """Without an expiry, with one too far, or of a kind that is none: no token."""
    tokens = Tokens(SETTINGS)
    now = int(time.time())
    good = {"aud": "shop", "iat": now, "exp": now + 60, "jti": "x", "scope": ["admin"]}

    def verify(**changed: object) -> None:
        tokens.verify(str(tokens._tokens.dumps(good | changed)))

    verify()
    for changed in (
        *({"exp": None}, {"iat": None}, {"exp": "9999999999"}, {"exp": 1e300}),
        *({"exp": now + 367 * 86400}, {"scope": "admin"}, {"aud": ["shop"]}),
        *({"env": "prod"}, {"host": "elsewhere.test"}, {"iat": now + 120}),
    ):
        with pytest.raises(Unauthenticated):
            verify(**changed)


def test_h08_audience_and_salt_bind() -> None:
    """Another service's token, or another salt under the same key, is no token."""
    other = Tokens(Settings(keys=(KEY,), service="other")).mint(["admin"], 60)
    cookie = str(
        URLSafeSerializer(KEY, signer_kwargs={"digest_method": hashlib.sha256}).dumps(
            {"aud": "shop", "scope": ["admin"]}
        )
    )
    for text in (other, cookie):
        with pytest.raises(Unauthenticated):
            Tokens(SETTINGS).verify(text)


def test_h09_keys_rotate() -> None:
    """An old key verifies until it is dropped; the newest signs."""
    new = generate_key()
    old_token = token()
    both = Tokens(Settings(keys=(KEY, new), service="shop"))
    only_new = Tokens(Settings(keys=(new,), service="shop"))

    assert both.verify(old_token)
    assert only_new.verify(both.mint(["profile"], 60))
    with pytest.raises(Unauthenticated):
        only_new.verify(old_token)


def test_h10_sha1_signatures_are_refused() -> None:
    """itsdangerous' default digest is not ours."""
    good = Tokens(SETTINGS)
    payload = URLSafeSerializer(KEY, salt=SALT).loads_unsafe(token())[1]
    weak = URLSafeSerializer(KEY, salt=SALT).dumps(payload)

    with pytest.raises(Unauthenticated):
        good.verify(str(weak))


@given(st.text(max_size=200))
def test_no_text_is_a_token(text: str) -> None:
    """Any text is refused with our error, never another."""
    with pytest.raises(Unauthenticated):
        Tokens(SETTINGS).verify(text)


def test_unknown_scopes_cannot_be_minted() -> None:
    """A scope that opens nothing is a mistake."""
    with pytest.raises(SettingsError):
        token("everything")


def test_what_a_worker_shows_another_holds_in_all_containers_of_the_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever their host names; on another machine it is nothing. Where the kernel has
    no number for the time since it began, the host name decides."""
    tokens = Tokens(SETTINGS)
    grant = tokens.verify(tokens.mint(["profile"], 60))
    own = tokens.mint_peer(grant)
    monkeypatch.setattr("stroboscope.auth.tokens.boot_id", lambda: "")
    by_name = tokens.mint_peer(grant)
    monkeypatch.undo()

    monkeypatch.setattr("socket.gethostname", lambda: "another-container")
    assert tokens.verify_peer(own).scopes == {"profile"}
    with pytest.raises(Unauthenticated):
        tokens.verify_peer(by_name)
    monkeypatch.undo()
    assert tokens.verify_peer(by_name).scopes == {"profile"}
    monkeypatch.setattr("stroboscope.auth.tokens.boot_id", lambda: "another machine")
    with pytest.raises(Unauthenticated):
        tokens.verify_peer(own)
