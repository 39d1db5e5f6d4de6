"""Configuration: one frozen value, validated when made, read once at start-up.

Nothing here looks at the environment by itself; integrations call
`Settings.from_environ(os.environ)` when the user installs the middleware.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from stroboscope import rules
from stroboscope.bind import Bind
from stroboscope.environ import read
from stroboscope.errors import SettingsError

#: Go's pprof default; the kernel's tick caps what can be had (250 Hz is common).
CPU_HZ_MAX = 1000
#: Silent responses longer than this die in the 60 s idle timeout of most proxies.
PROFILE_SECONDS_CAP = 60.0
TRACE_SECONDS_CAP = 10.0
SCOPES = frozenset({"metrics", "profile", "trace", "admin"})
LABEL_SETS_CAP = 512
WINDOWS_CAP = 4
#: Below it the looks at a loop would cost more than they tell.
STALL_MS_MIN = 10.0
RECORDER_BYTES = 8 << 20
RECORDER_BYTES_MIN, RECORDER_BYTES_MAX = 32 << 10, 512 << 20

_REDIS = re.compile(r"rediss?://\S+")
_PREFIX = re.compile(r"(/[A-Za-z0-9._~-]+)+")
#: Before a key it gives a key; see `labels.sets`.
_LABEL_PREFIX = re.compile(r"([A-Za-z_][A-Za-z0-9_.]{0,63})?")
_URL = re.compile(r"https?://[!-~]{1,512}")
_SERVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything a user can choose. Every field has a safe default.

    Raises: SettingsError when a value is out of range.
    """

    #: Signing keys, oldest first; the newest signs. Empty: the surface is off.
    keys: tuple[str, ...] = field(default=(), repr=False)
    #: Audience of tokens; a token of another service is refused.
    service: str = "default"
    #: Environment of tokens, such as `prod`; a token of another one is refused.
    env: str = ""
    #: Ids of tokens and share links that no longer count.
    revoked: tuple[str, ...] = ()
    #: Tokens issued before this moment no longer count; seconds since 1970.
    not_before: float = 0.0
    #: Host names the surface answers to, besides `localhost` and addresses.
    hosts: tuple[str, ...] = ()
    #: One static Basic user, for tools that cannot send tokens.
    user: str = ""
    #: Its hashed password, made by `stroboscope password`.
    password_hash: str = field(default="", repr=False)
    user_scopes: tuple[str, ...] = ("metrics", "profile")
    #: Scopes by subject of a client certificate that the server has verified.
    certificates: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    #: Asked last, with the ASGI scope, WSGI environ or Django request and the scopes
    #: found: returns those to keep, or true or false. It can only narrow; may block.
    authorize: Callable[[Any, frozenset[str]], Any] | None = field(
        default=None, repr=False
    )
    #: Share of processes that carry the surface and label requests: by a stable hash
    #: of host and process id.
    enable_fraction: float = 1.0
    #: The same as a condition on the environment, `POD_ROLE=canary`, or a function.
    enable_when: str | Callable[[], bool] = ""
    #: Show `argv[0]` at `/debug/pprof/cmdline`, which is 404 otherwise.
    cmdline: bool = False
    #: Where the workers of a service on this host meet: a folder for sockets, that
    #: others cannot write to. Empty: of this user, in XDG_RUNTIME_DIR or the temporary
    #: folder. `off`: each worker answers for itself alone.
    rundir: str = ""
    #: A port beside the application's, that one worker has: `127.0.0.1:6060` or
    #: `unix:PATH`. The next has it within 2 s when that worker dies.
    admin_bind: str = ""
    #: PEM files of the admin port's certificate and its key: then it speaks TLS.
    admin_certificate: str = ""
    admin_key: str = field(default="", repr=False)
    #: Let the admin port speak plain HTTP on an address that other hosts reach, because
    #: something before it encrypts.
    admin_plaintext: bool = False
    #: Where the hosts of a service share one lease and one set of knobs:
    #: `redis://` or, with TLS, `rediss://`. Needs `stroboscope[redis]`.
    redis_url: str = field(default="", repr=False)
    #: Where the surface is mounted, no trailing slash.
    prefix: str = "/debug"
    #: Requested samples per second of CPU time and thread.
    cpu_hz: int = 100
    #: Longest profile, in seconds; longer requests are clamped and say so.
    profile_seconds_cap: float = PROFILE_SECONDS_CAP
    #: Longest trace, in seconds.
    trace_seconds_cap: float = TRACE_SECONDS_CAP
    #: Refuse longer requests instead.
    strict_seconds: bool = False
    #: Share of one CPU that we may use for 5 s before the sampler slows down.
    overhead_share: float = 0.02
    #: Go's fractions; 0 is off. They count nothing before their collectors are built.
    mutex_fraction: int = 0
    block_rate_ns: int = 0
    heap_rate_bytes: int = 0
    #: Sample what C code asks of Python's RAW allocator as well, with the GIL or not.
    heap_raw: bool = False
    #: An event loop that is late by more is a stall, and who blocks it is found out;
    #: 0 watches neither loops nor requests.
    stall_threshold_ms: float = 100.0
    #: A request that keeps a server's thread for longer is slow: gunicorn's sync and
    #: gthread, and other WSGI. 0 watches loops alone.
    slow_request_s: float = 10.0
    #: Count where threads are started, a microsecond a start.
    threadcreate: bool = True
    #: Share of requests that are traced, by trace id where there is one.
    trace_fraction: float = 1.0
    #: Keep the last seconds of tasks, regions and logs, once there are keys.
    flight_recorder: bool = True
    #: Bytes of the ring they are kept in, 32 an event.
    recorder_bytes: int = RECORDER_BYTES
    #: Where a trace is shown, such as `https://jaeger.example/trace/{trace_id}`; may
    #: hold `{span_id}`, too.
    trace_url: str = ""
    #: Where browsers find the service, such as `https://shop.example`: before the links
    #: that spans carry.
    public_url: str = ""
    #: When the last seconds are kept on disk, and how many of them; see `Rules`. Empty:
    #: never. `latency=2 p99=10 errors stall=1 rss=800000000 tasks=5000 per_hour=12`.
    evidence: str = ""
    #: Where, in a folder of the service's name. Empty: in the run directory.
    evidence_dir: str = ""
    #: Export the regions of recorded requests as OpenTelemetry spans as well.
    regions_to_spans: bool = False
    #: Captures that may share the sampler at once.
    windows: int = WINDOWS_CAP
    #: Distinct label sets alive at once in this process; beyond it `(overflow)`.
    #: One table serves all middleware: the cap made last holds.
    label_sets: int = LABEL_SETS_CAP
    #: Finds the tenant of a request: called with the ASGI scope, the WSGI environ
    #: or the Django request; returns its id or None. May raise: then no label. Called
    #: once at most, and only for a request that is sampled or traced; must not block.
    tenant: Callable[[Any], str | None] | None = None
    #: Tenants shown by name. Empty: the `tenant_top` heaviest are found at run time.
    tenants: tuple[str, ...] = ()
    #: How many heavy tenants get a bucket of their own when `tenants` is empty.
    tenant_top: int = 20
    #: Show keyed hashes instead of tenant ids. Needs a key.
    hash_tenants: bool = False
    #: Upper bounds of the `latency` label in seconds, ascending.
    latency_buckets: tuple[float, ...] = (0.1, 1.0)
    #: Labels given to every request, such as a role. Where a request label has the
    #: same key and is known, the request's stands.
    labels: Mapping[str, str] = field(default_factory=dict)
    #: Prepended to the keys of request labels (endpoint, method, tenant, …), to no
    #: other: not to `labels`, not to those of `do`.
    label_prefix: str = ""

    def __post_init__(self) -> None:
        _require(0 < self.cpu_hz <= CPU_HZ_MAX, "cpu_hz", self.cpu_hz, "1 to 1000")
        cap = self.profile_seconds_cap
        _require(
            math.isfinite(cap) and 0 < cap <= 3600,
            "profile_seconds_cap",
            cap,
            "0..3600",
        )
        cap = self.trace_seconds_cap
        _require(0 < cap <= 60, "trace_seconds_cap", cap, "above 0, at most 60")
        share = self.overhead_share
        _require(0 < share <= 1, "overhead_share", share, "above 0, at most 1")
        fraction = self.enable_fraction
        _require(0 <= fraction <= 1, "enable_fraction", fraction, "0 to 1")
        _require(
            not self.user or bool(self.password_hash),
            "user",
            self.user,
            "only with password_hash",
        )
        granted = {*self.user_scopes, *itertools.chain(*self.certificates.values())}
        _require(granted <= SCOPES, "scopes", sorted(granted), str(sorted(SCOPES)))
        when = self.enable_when
        _require(
            callable(when) or not when or "=" in when,
            "enable_when",
            when,
            "NAME=value or a function",
        )
        _require(
            all(host == host.lower() and ":" not in host for host in self.hosts),
            "hosts",
            self.hosts,
            "lower-case names without port",
        )
        late_ms, slow_s = self.stall_threshold_ms, self.slow_request_s
        _require(
            late_ms == 0 or STALL_MS_MIN <= late_ms <= 60_000,
            "stall_threshold_ms",
            late_ms,
            "10 to 60000, or 0",
        )
        _require(
            slow_s == 0 or 0.5 <= slow_s <= 3600,
            "slow_request_s",
            slow_s,
            "0.5 to 3600, or 0",
        )
        _require(
            0 <= self.trace_fraction <= 1,
            "trace_fraction",
            self.trace_fraction,
            "0 to 1",
        )
        _require(
            RECORDER_BYTES_MIN <= self.recorder_bytes <= RECORDER_BYTES_MAX,
            "recorder_bytes",
            self.recorder_bytes,
            f"{RECORDER_BYTES_MIN} to {RECORDER_BYTES_MAX}",
        )
        _require(
            not self.trace_url
            or (
                bool(_URL.fullmatch(self.trace_url)) and "{trace_id}" in self.trace_url
            ),
            "trace_url",
            self.trace_url,
            "http:// or https:// and {trace_id}",
        )
        _require(
            not self.public_url or _URL.fullmatch(self.public_url) is not None,
            "public_url",
            self.public_url,
            "http:// or https:// and a host",
        )
        _require(1 <= self.windows <= 16, "windows", self.windows, "1 to 16")
        _require(
            1 <= self.label_sets <= 65536, "label_sets", self.label_sets, "1 to 65536"
        )
        _require(0 <= self.tenant_top <= 256, "tenant_top", self.tenant_top, "0 to 256")
        _require(
            _PREFIX.fullmatch(self.prefix) is not None,
            "prefix",
            self.prefix,
            "a path such as /debug",
        )
        _require(
            self.rundir in ("", "off") or self.rundir.startswith("/"),
            "rundir",
            self.rundir,
            "an absolute path, or off",
        )
        self._check_admin()
        _require(
            not self.redis_url or _REDIS.fullmatch(self.redis_url) is not None,
            "redis_url",
            "another",  # it may hold a password
            "redis://host:port/db, or rediss://",
        )
        problem = rules.problem(self.evidence, self.evidence_dir, self.rundir)
        _require(not problem, "evidence", self.evidence, problem)
        _require(
            _SERVICE.fullmatch(self.service) is not None,
            "service",
            self.service,
            "letters, digits, '-', '_' and '.', at most 64",
        )
        _require(
            _LABEL_PREFIX.fullmatch(self.label_prefix) is not None,
            "label_prefix",
            self.label_prefix,
            "letters, digits, '_' and '.', not starting with a digit or '.', at most 64",
        )
        bounds = self.latency_buckets
        ascending = all(a < b for a, b in itertools.pairwise(bounds))
        _require(
            ascending and all(b > 0 and math.isfinite(b) for b in bounds),
            "latency_buckets",
            bounds,
            "ascending positive seconds",
        )
        _require(
            not self.hash_tenants or bool(self.keys),
            "hash_tenants",
            self.hash_tenants,
            "true only with a key",
        )

    @property
    def evidence_rules(self) -> rules.Rules:
        """What `evidence` says."""
        return rules.Rules.parse(self.evidence)

    def _check_admin(self) -> None:
        if not self.admin_bind:
            return
        try:
            bind = Bind.parse(self.admin_bind)
        except ValueError as error:
            raise SettingsError(
                f"admin_bind is {self.admin_bind!r:.120}; {error}"
            ) from error
        _require(
            bool(self.admin_certificate) == bool(self.admin_key),
            "admin_certificate",
            self.admin_certificate,
            "together with admin_key",
        )
        _require(
            bind.is_loopback or bool(self.admin_certificate) or self.admin_plaintext,
            "admin_bind",
            self.admin_bind,
            "this host's own addresses; others with admin_certificate and admin_key, "
            "or with admin_plaintext where something before it encrypts",
        )

    @classmethod
    def from_environ(cls, environ: Mapping[str, str], **overrides: object) -> Settings:
        """Read `STROBOSCOPE_*`; keyword arguments win over the environment.

        Raises: SettingsError for an unknown keyword or an unreadable value.
        """
        known = {f.name for f in fields(cls)}
        unknown = overrides.keys() - known
        if unknown:
            raise SettingsError(
                f"unknown settings {sorted(unknown)}; known are {sorted(known)}"
            )
        values: dict[str, Any] = read(environ)
        return cls(**{**values, **overrides})


def _require(holds: bool, name: str, value: object, allowed: str) -> None:
    if not holds:
        raise SettingsError(f"{name} is {value!r}; allowed: {allowed}")
