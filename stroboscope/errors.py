"""Every error of ours, in one low file; each carries its evidence as attributes.

StroboscopeError
├── SettingsError            a wrong setting; raised at start-up
│   └── WeakKeyError         a signing key that could be guessed
├── LabelError               a label key or value out of bounds
├── KnobError                a change of a setting at run time that is refused
│   └── KnobConflict         somebody else changed it meanwhile
├── EngineError
│   ├── EngineUnavailable    no sampler can run here, and why
│   └── WindowsExhausted     every shared sampling window is taken
├── FolderError              the workers of a service cannot meet, and why
├── PortTaken                another process listens at the admin port
├── FleetError               what its hosts share cannot be reached, and why
├── ProfileError             data that cannot become a profile
│   ├── ProfileFormatError   bytes that are not a profile
│   ├── PatternError         a filter or regular expression that is refused
│   └── RecordingFormatError bytes that are not a recording
└── AccessError
    ├── Unauthenticated      no valid token
    ├── Forbidden            a valid token without the scope
    ├── BadHost              a Host header that is not ours
    ├── CrossSite            a browser on another site's behalf
    └── Throttled            too many failures
"""


class StroboscopeError(Exception):
    """Base of everything this library raises on purpose."""


class SettingsError(StroboscopeError, ValueError):
    """A setting is wrong. Raised at start-up, never in a request."""


class WeakKeyError(SettingsError):
    """A signing key is too short, too regular or publicly known."""


class LabelError(StroboscopeError, ValueError):
    """A label key or value is out of bounds where it was defined."""


class KnobError(StroboscopeError, ValueError):
    """A change at run time is out of bounds; the message says what is allowed."""


class KnobConflict(KnobError):
    """The version named is not the current one."""


class EngineError(StroboscopeError):
    """The sampling engine refused."""


class EngineUnavailable(EngineError):
    """No sampler can run in this process now; the message says why."""


class WindowsExhausted(EngineError):
    """All sampling windows are in use.

    `retry_after_s` is the time until the first of them ends, at least 1.
    """

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class FolderError(StroboscopeError):
    """The run directory cannot be used, or not safely."""


class PortTaken(StroboscopeError):
    """Another process listens at the admin port now."""


class FleetError(StroboscopeError):
    """Redis cannot be reached, or not in time; the message holds no secret."""


class ProfileError(StroboscopeError, ValueError):
    """Data cannot become a profile, or a profile does not hold what was asked."""


class ProfileFormatError(ProfileError):
    """Bytes are not a readable pprof profile."""


class PatternError(ProfileError):
    """A filter of a profile is refused; the message says which and why, in one line."""


class RecordingFormatError(ProfileError):
    """Bytes are not a readable recording; the message says what is wrong."""


class AccessError(StroboscopeError):
    """A request to the debug surface is refused.

    `cause` is for the audit log only: the client sees one constant text.
    """

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause


class Unauthenticated(AccessError):
    """No token, or none that is valid here and now."""


class Forbidden(AccessError):
    """The token is valid and lacks the scope."""


class BadHost(AccessError):
    """The Host header is missing, doubled, malformed or not ours."""


class CrossSite(AccessError):
    """A browser sends it on behalf of another site."""


class Throttled(AccessError):
    """Too many failures from this peer, or in all; `retry_after_s` is at least 1."""

    def __init__(self, cause: str, retry_after_s: int) -> None:
        super().__init__(cause)
        self.retry_after_s = retry_after_s
