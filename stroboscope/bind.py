"""An address to listen at: `127.0.0.1:6060`, `[::1]:6060` or `unix:/run/app/debug.sock`."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

_UNIX = "unix:"
#: A socket's path has room for so many bytes. Source: unix(7), sun_path less its zero.
_PATH_CAP = 107


@dataclass(frozen=True, slots=True)
class Bind:
    """A TCP address and port, or else the path of a unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> Bind:
        """Raises: ValueError with what is allowed.

        Names are not looked up: `localhost` is 127.0.0.1, all others are refused.
        """
        if text.startswith(_UNIX):
            path = text.removeprefix(_UNIX)
            if not path.startswith("/") or len(path.encode()) > _PATH_CAP:
                raise ValueError(f"allowed: an absolute path of {_PATH_CAP} bytes")
            return cls(path=path)
        host, _, port = text.rpartition(":")
        if not (port.isascii() and port.isdigit() and int(port) <= 65535):
            raise ValueError("allowed: ADDRESS:PORT, or unix:PATH")
        host = "127.0.0.1" if host == "localhost" else host.strip("[]")
        return cls(str(ipaddress.ip_address(host)), int(port))

    @property
    def is_loopback(self) -> bool:
        """Whether only this host can reach it."""
        return bool(self.path) or ipaddress.ip_address(self.host).is_loopback

    def __str__(self) -> str:
        if self.path:
            return _UNIX + self.path
        return (
            f"[{self.host}]:{self.port}"
            if ":" in self.host
            else f"{self.host}:{self.port}"
        )
