"""A worker's own door: its socket, what it looks after, and what it leaves."""

from __future__ import annotations

import _socket
import os
from collections.abc import Callable

from stroboscope._http import asgi
from stroboscope._http.listener import Listener
from stroboscope._http.messages import Request, Response
from stroboscope._http.pool import Pool
from stroboscope._types import Message, Send
from stroboscope.endpoints.counted import Keeper
from stroboscope.endpoints.desk import Desk

#: Answers a request that came by the socket, with the turns of this pool.
Answering = Callable[[Request, _socket.socket, Callable[[], bytes], Pool], Response]


def own_door(desk: Desk, answer: Answering) -> Listener | None:
    """The listener of a surface, not started; None where workers do not meet.

    It has turns of its own: who fills the application's does not shut this door.
    """
    if desk.members is None:
        return None
    pool, keeper = Pool(), Keeper(desk)
    os.register_at_fork(after_in_child=pool.after_fork)
    os.register_at_fork(after_in_child=keeper.after_fork)

    def look() -> None:
        desk.watch_knobs()
        keeper.look()
        if desk.leaving is not None:
            desk.leaving.tend()

    listener = Listener(
        desk.members,
        lambda request, socket, body: answer(request, socket, body, pool),
        look,
        keeper.end,
    )
    desk.door = lambda: listener.failure
    return listener


def until_shutdown(listener: Listener, send: Send) -> Send:
    """A lifespan's `send`: before its last word the door is shut.

    Servers may end by a signal after that, and then nothing runs at exit.
    """

    async def observed(message: Message) -> None:
        if str(message.get("type", "")).startswith("lifespan.shutdown."):
            await asgi.finish(listener.stop)
        await send(message)

    return observed
