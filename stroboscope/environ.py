"""Settings from text: which variable of the environment holds which, and how it is read.

Nothing here looks at the environment by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from stroboscope.errors import SettingsError


def read(environ: Mapping[str, str]) -> dict[str, object]:
    """What `STROBOSCOPE_*` says, by the name of the setting; blank is not said.

    Raises: SettingsError for an unreadable value. The range is not looked at.
    """
    values = {}
    for name, parse in VARIABLES.items():
        variable = f"STROBOSCOPE_{name.upper()}"
        text = environ.get(variable, "").strip()
        if text:
            try:
                values[name] = parse(text)
            except ValueError as error:
                # Keys must not reach a log by way of an error message.
                raise SettingsError(f"{variable} cannot be read") from error
    return values


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.replace(",", " ").split())


def _seconds(text: str) -> tuple[float, ...]:
    return tuple(float(word) for word in _words(text))


def _flag(text: str) -> bool:
    values = {"1": True, "true": True, "yes": True, "0": False, "false": False}
    values["no"] = False
    if text.lower() not in values:
        raise ValueError(text)
    return values[text.lower()]


#: How each setting that has an environment variable is read from it.
VARIABLES: dict[str, Callable[[str], object]] = {
    "keys": _words,
    "service": str,
    "env": str,
    "revoked": _words,
    "not_before": float,
    "hosts": _words,
    "user": str,
    "password_hash": str,
    "user_scopes": _words,
    "enable_fraction": float,
    "enable_when": str,
    "cmdline": _flag,
    "prefix": str,
    "rundir": str,
    "admin_bind": str,
    "admin_certificate": str,
    "admin_key": str,
    "admin_plaintext": _flag,
    "redis_url": str,
    "trace_seconds_cap": float,
    "strict_seconds": _flag,
    "overhead_share": float,
    "mutex_fraction": int,
    "block_rate_ns": int,
    "heap_rate_bytes": int,
    "heap_raw": _flag,
    "trace_fraction": float,
    "flight_recorder": _flag,
    "recorder_bytes": int,
    "cpu_hz": int,
    "profile_seconds_cap": float,
    "stall_threshold_ms": float,
    "slow_request_s": float,
    "threadcreate": _flag,
    "windows": int,
    "label_sets": int,
    "tenants": _words,
    "tenant_top": int,
    "hash_tenants": _flag,
    "latency_buckets": _seconds,
    "label_prefix": str,
    "trace_url": str,
    "evidence": str,
    "evidence_dir": str,
    "public_url": str,
    "regions_to_spans": _flag,
}
