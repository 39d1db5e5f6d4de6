"""The doors of our own: beside the application's port, which may be stuck.

Each worker has its socket in the run directory; one process of the service, a worker or
the sidecar, has the admin port.
"""

from __future__ import annotations

import _socket
import os
import ssl
from collections.abc import Callable

from stroboscope._core import engine
from stroboscope._http import asgi
from stroboscope._http.listener import Guest, LetIn, Listener, same_user
from stroboscope._http.messages import Request, Response
from stroboscope._http.pool import Pool
from stroboscope._http.tls import TLSConnection, server_context
from stroboscope._types import Message, Send
from stroboscope.bind import Bind
from stroboscope.endpoints.counted import Keeper
from stroboscope.endpoints.desk import Desk
from stroboscope.errors import SettingsError
from stroboscope.settings import Settings
from stroboscope.tracing.recorder import recorder
from stroboscope.workers.folder import Glance
from stroboscope.workers.port import AdminPort

NO_DOOR = "off"

#: `Surface.answer`: with the client's socket, the body's reader, a pool and a sleep.
Answer = Callable[
    [Request, object, Callable[[], bytes], Pool, Callable[[float], object]], Response
]


class Doors:
    """Both doors of one surface; `start` opens them in this process.

    Raises: SettingsError when the admin port's certificate cannot be read.
    """

    def __init__(self, desk: Desk, answer: Answer) -> None:
        # Turns of their own: who fills the application's does not shut these doors.
        pool, keeper = Pool(), Keeper(desk)
        os.register_at_fork(after_in_child=pool.after_fork)
        os.register_at_fork(after_in_child=keeper.after_fork)

        def answered(
            request: Request,
            connection: _socket.socket,
            read_body: Callable[[], bytes],
        ) -> Response:
            return answer(request, connection, read_body, pool, engine.sleep)

        self._own = self._admin = None
        if desk.members is not None and desk.is_worker:
            look = _looks(desk, keeper, Glance(desk.members.folder.path))
            self._own = Listener(desk.members, answered, each=look, end=keeper.end)
        if desk.settings.admin_bind:
            bind = Bind.parse(desk.settings.admin_bind)
            port = AdminPort(bind, desk.members.folder if desk.members else None)
            each = desk.watch_knobs if self._own is None else _nothing
            let_in = _let_in(bind, _context(desk.settings))
            self._admin = Listener(port, answered, let_in, each)

    def start(self) -> None:
        """Open them, in this process, from a thread of ours. Never raises."""
        for door in self._both():
            door.start()

    def stop(self) -> None:
        """Shut them."""
        for door in self._both():
            door.stop()

    def until_shutdown(self, send: Send) -> Send:
        """A lifespan's `send`: before its last word doors are shut, the black box gone.

        Servers may end by a signal after that, and then nothing runs at exit.
        """

        def part() -> None:
            self.stop()
            recorder.part()

        async def observed(message: Message) -> None:
            if str(message.get("type", "")).startswith("lifespan.shutdown."):
                await asgi.finish(part)
            await send(message)

        return observed if self._both() else send

    @property
    def socket_failure(self) -> str:
        """Why this worker has no socket of its own; empty where it has."""
        return NO_DOOR if self._own is None else self._own.failure

    @property
    def admin_failure(self) -> str:
        """Why this process has not the admin port; empty where it has."""
        return NO_DOOR if self._admin is None else self._admin.failure

    def _both(self) -> list[Listener]:
        return [door for door in (self._own, self._admin) if door is not None]


def _looks(desk: Desk, keeper: Keeper, glance: Glance) -> Callable[[], None]:
    """What a worker does in each turn of its listener: little, while nothing changes."""

    def look() -> None:
        if glance() and not desk.watch_knobs():
            glance.forget()
        keeper.look()
        if desk.leaving is not None:
            desk.leaving.tend()

    return look


def _nothing() -> None:
    pass


def _context(settings: Settings) -> ssl.SSLContext | None:
    if not settings.admin_certificate:
        return None
    try:
        return server_context(settings.admin_certificate, settings.admin_key)
    except OSError as error:
        raise SettingsError(f"admin_certificate cannot be used: {error}") from error


def _let_in(bind: Bind, context: ssl.SSLContext | None) -> LetIn:
    """Whoever reaches a port may come in, and meets the gate as everybody does."""

    def let_in(connection: _socket.socket) -> Guest | None:
        if bind.path:
            guest = same_user(connection)
            return guest and Guest(connection, guest.peer)
        peer = str(connection.getpeername()[0])
        if context is not None:
            return Guest(TLSConnection(connection, context), peer)
        return Guest(connection, peer)

    return let_in
