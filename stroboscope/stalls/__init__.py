"""Stalls: who kept an event loop, or a thread of the server, for too long."""

from stroboscope.stalls.records import Book, Stall
from stroboscope.stalls.watch import WATCH, Watch, watch_loop

__all__ = ["WATCH", "Book", "Stall", "Watch", "watch_loop"]
