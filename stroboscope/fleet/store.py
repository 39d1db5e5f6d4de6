"""What stands in Redis, and the scripts that change it.

Four keys for each service and env, in one slot of a cluster: `state`, a hash with the
knobs and a mark for each part, by which a look sees with one command that nothing has
changed; `revoked`, a set of ids; `lease`, which ends by itself; `fence`, a counter. Each
script may run twice without harm. Needs Redis 5 or later.

Redis' clock is the one that all hosts have in common: what ends, ends by it, and each host
turns that into a moment of its own monotonic clock. What is read is believed only where
somebody with our keys has signed it: see `seal`.
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote

from stroboscope.errors import FleetError
from stroboscope.fleet.clerk import Call
from stroboscope.fleet.seal import Seal

_T = TypeVar("_T")
#: Bytes of the knobs, and ids, that are read. More is none of ours.
DOCUMENT_CAP, IDS_CAP = 65_536, 16_384
#: What a signature is of.
_KNOBS, _LEASE = "settings document", "lease"
_ID, _BEFORE = "revocation", "moment of revocation"
#: Where no moment stands.
_NEVER = "0"

#: A mark that somebody has written by hand must not keep the next one out.
_PLAIN = """
local function plain(text)
  return (string.gsub(string.sub(text or '', 1, 80), '[^%w%.]', '?'))
end
"""
_READ = (
    _PLAIN
    + """
local found = redis.call('HMGET', KEYS[1], 'mark', 'knobs', 'seal')
local now = redis.call('TIME')
return {plain(found[1]), string.sub(found[2] or '', 1, ARGV[1] + 1),
        string.sub(found[3] or '', 1, 400), now[1], now[2]}
"""
)
#: ARGV: the mark that must stand there, the new one, the document, its signature.
_WRITE = (
    _PLAIN
    + """
local mark = plain(redis.call('HGET', KEYS[1], 'mark'))
if mark ~= ARGV[1] and mark ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], 'mark', ARGV[2], 'knobs', ARGV[3], 'seal', ARGV[4])
return 1
"""
)
#: ARGV: most entries, a new mark, the moment signed, one that is not ours, ids signed. A
#: union: nothing is taken back.
_REVOKE = """
local added = 0
for i = 5, #ARGV do added = added + redis.call('SADD', KEYS[2], ARGV[i]) end
local function moment(text) return tonumber(string.match(text, '^[^|]*')) or 0 end
local before = redis.call('HGET', KEYS[1], 'not_before') or '0'
if before == ARGV[4] or moment(ARGV[3]) > moment(before) then
  before = ARGV[3]
  redis.call('HSET', KEYS[1], 'not_before', before)
  added = added + 1
end
if added > 0 then redis.call('HSET', KEYS[1], 'revoked', ARGV[2]) end
if redis.call('SCARD', KEYS[2]) > tonumber(ARGV[1]) then
  return redis.error_reply('too many ids are revoked')
end
return {redis.call('HGET', KEYS[1], 'revoked') or '', before,
        redis.call('SMEMBERS', KEYS[2])}
"""
#: ARGV: milliseconds, nonce, host, kind, whether the host's lock is held, the signature,
#: one that is not ours. What is held by the same host then is a dead worker's; what has no
#: end is nobody's.
_TAKE = """
local held = redis.call('GET', KEYS[1])
local left = redis.call('PTTL', KEYS[1])
if held and left >= 0 and string.sub(held, 1, 400) ~= ARGV[7] then
  local fence, nonce, host, kind =
    string.match(held, '^(%d+)|(%x+)|(%x+)|([%a ]+)|[%x:,]*$')
  if nonce == ARGV[2] then return {1, fence} end
  if not (ARGV[5] == '1' and host == ARGV[3]) then
    return {0, string.sub(held, 1, 400), left}
  end
end
local fence = redis.call('INCR', KEYS[2])
local value = table.concat({fence, ARGV[2], ARGV[3], ARGV[4], ARGV[6]}, '|')
redis.call('SET', KEYS[1], value, 'PX', ARGV[1])
return {1, fence}
"""
#: ARGV: fence, nonce. 1: ours until now. 2: gone, and nobody has had it since. 0: lost.
_END = """
local held = redis.call('GET', KEYS[1])
if held then
  local fence, nonce = string.match(held, '^(%d+)|(%x+)|')
  if nonce == ARGV[2] then
    redis.call('DEL', KEYS[1])
    return 1
  end
  return 0
end
local fence = redis.call('GET', KEYS[2])
if not fence or fence == ARGV[1] then return 2 end
return 0
"""


@dataclass(frozen=True, slots=True)
class Shared:
    """The knobs as they stand in Redis; `now_ms` is its clock.

    `overrides`: value and end in milliseconds of that clock, or None, by name.
    """

    mark: str
    version: int
    overrides: dict[str, tuple[Any, float | None]]
    now_ms: float
    #: Nobody who holds our keys has signed them: they count for nothing.
    is_foreign: bool = False


@dataclass(frozen=True, slots=True)
class Taken:
    """Somebody else holds the lease: what for, and its milliseconds."""

    kind: str
    left_ms: int


@dataclass(frozen=True, slots=True)
class Ours:
    """The lease is held; a later holder's `fence` is higher. 0 where it is not known."""

    fence: int
    nonce: str


def new_nonce() -> str:
    """What a holder is known by."""
    return secrets.token_hex(8)


def new_mark(version: int) -> str:
    """A mark no other change has, that begins with its version."""
    return f"{version}.{secrets.token_hex(8)}"


class Store:
    """Of one service and env, by way of `Clerk.ask` or `ask_here`.

    Every method raises FleetError.
    """

    def __init__(
        self,
        ask: Callable[[Callable[[Call], Any]], Any],
        service: str,
        env: str,
        seal: Seal,
    ) -> None:
        self._ask = ask
        self._seal = seal
        scope = f"stroboscope:{{{service}/{quote(env, safe='')}}}:"
        self.state, self.revoked = scope + "state", scope + "revoked"
        self.lease, self.fence = scope + "lease", scope + "fence"

    def look(self) -> tuple[str, str]:
        """The marks of knobs and revocations; empty where there are none. One command."""
        found = self._ask(lambda call: call("HMGET", self.state, "mark", "revoked"))
        return _text(found[0] or b"")[:80], _text(found[1] or b"")[:80]

    def read(self) -> Shared:
        """The knobs; version 0 where there are none that can be read, or believed."""
        raw = self._run(_READ, [self.state], DOCUMENT_CAP)
        mark, document, seal = map(_text, raw[:3])
        now_ms = int(raw[3]) * 1000 + int(raw[4]) / 1000
        if document and not self._seal.holds(seal, _KNOBS, mark, document):
            return Shared(mark, 0, {}, now_ms, is_foreign=True)
        try:
            version, overrides = _parsed(document)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            version, overrides = 0, {}
        return Shared(mark, version, overrides, now_ms)

    def write(self, base: str, mark: str, shared: Shared) -> bool:
        """Put knobs in place of those marked `base`; whether these were still there."""
        document = json.dumps(
            {"version": shared.version, "overrides": shared.overrides}
        )
        if len(document) > DOCUMENT_CAP:
            raise FleetError("the settings are too long")
        seal = self._seal.sign(_KNOBS, mark, document)
        return bool(self._run(_WRITE, [self.state], base, mark, document, seal))

    def revoke(
        self, ids: list[str], not_before_s: float
    ) -> tuple[str, list[str], float]:
        """Add these; the mark, the ids and the moment that hold now."""
        before = self._signed(_BEFORE, repr(not_before_s))
        news = [self._signed(_ID, one) for one in ids]
        mark, found, entries = self._revoke(before, "", news)
        if found != _NEVER and not self._believed(_BEFORE, found):
            mark, found, entries = self._revoke(before, found, [])
        said = "" if found == _NEVER else self._believed(_BEFORE, found)
        moment_s = float(said or 0)
        believed = {self._believed(_ID, one) for one in entries} - {""}
        return mark, sorted(believed), moment_s if math.isfinite(moment_s) else 0.0

    def _revoke(
        self, before: str, not_ours: str, news: list[str]
    ) -> tuple[str, str, list[str]]:
        keys = [self.state, self.revoked]
        words = (secrets.token_hex(8), before, not_ours, *news)
        mark, found, entries = self._run(_REVOKE, keys, IDS_CAP, *words)
        return _text(mark), _text(found), [_text(one) for one in entries]

    def _signed(self, what: str, text: str) -> str:
        return f"{text}|{self._seal.sign(what, text)}"

    def _believed(self, what: str, entry: str) -> str:
        """What was signed, or nothing."""
        text, _, seal = entry.rpartition("|")
        return text if self._seal.holds(seal, what, text) else ""

    def take(
        self, kind: str, seconds: float, host: str, nonce: str, *, has_host: bool
    ) -> Ours | Taken:
        """Hold the lease for so long, as whoever made this `nonce`.

        `has_host`: the host's own is held, by us. After a FleetError it may be held, now
        or when a Redis that stood still goes on; `end` frees it.
        """
        seal = self._seal.sign(_LEASE, nonce, host, kind)
        not_ours = ""
        for _ in range(2):
            found = self._run(
                _TAKE,
                [self.lease, self.fence],
                math.ceil(seconds * 1000),
                nonce,
                host,
                kind,
                int(has_host),
                seal,
                not_ours,
            )
            if found[0] == 1:
                return Ours(int(found[1]), nonce)
            not_ours = _text(found[1])
            holder = self._holder(not_ours)
            if holder:
                break
        return Taken(holder or "capture", int(found[2]))

    def _holder(self, held: str) -> str:
        """What a lease is held for; empty where nobody who holds our keys has it."""
        _, nonce, host, kind, seal = (held.split("|") + [""] * 5)[:5]
        return kind if self._seal.holds(seal, _LEASE, nonce, host, kind) else ""

    def end(self, held: Ours) -> int:
        """Free it. 1: ours until now; 2: gone, and nobody had it since; 0: lost."""
        keys = [self.lease, self.fence]
        return int(self._run(_END, keys, held.fence, held.nonce))

    def _run(self, script: str, keys: list[str], *arguments: str | int | float) -> Any:
        return self._ask(
            lambda call: call("EVAL", script, len(keys), *keys, *arguments)
        )


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _parsed(
    document: str,
) -> tuple[int, dict[str, tuple[Any, float | None]]]:
    if not document or len(document) > DOCUMENT_CAP:
        return 0, {}
    found = json.loads(document)
    overrides = {}
    for name, (value, ends_ms) in found["overrides"].items():
        ends_ms = None if ends_ms is None else float(ends_ms)
        if ends_ms is not None and not math.isfinite(ends_ms):
            raise ValueError(name)
        overrides[name] = (value, ends_ms)
    version = int(found["version"])
    if not 0 <= version < 1 << 53:
        raise ValueError(version)
    return version, overrides
