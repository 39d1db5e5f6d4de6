"""A site of greenlets that writes down where threads are given hubs.

What an application may bring along is here, too: it logs all the time, by the handler
that our lines go to, and by a queue; its spans and records go to exporters, in batches.
"""

import logging.handlers
import os
import queue
import tempfile
import traceback
from typing import Any

import gevent
import gevent.hub
import gevent.monkey
from opentelemetry import _logs, trace
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor, ConsoleLogExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

from examples.flask_app import app

__all__ = ["app"]

_begin = gevent.hub.Hub.__init__
_ident = gevent.monkey.get_original("_thread", "get_ident")
_main = _ident()
_nowhere = open(os.devnull, "w")  # noqa: SIM115 - as long as the process lives


def _begun(hub: Any, *args: Any, **options: Any) -> None:
    if _ident() != _main:
        kind = {"prefix": f"{os.getpid()}.", "dir": os.environ["HUBS"], "mode": "w"}
        with tempfile.NamedTemporaryFile(delete=False, **kind) as file:
            file.write("".join(traceback.format_stack()[:-1]))
    _begin(hub, *args, **options)


gevent.hub.Hub.__init__ = _begun

lines: queue.Queue[logging.LogRecord] = queue.Queue()
log = logging.getLogger("stroboscope")
log.setLevel(logging.INFO)
log.addHandler(logging.handlers.QueueHandler(lines))
logging.getLogger().addHandler(logging.StreamHandler(_nowhere))
logging.handlers.QueueListener(lines, logging.StreamHandler(_nowhere)).start()

spans = TracerProvider()
spans.add_span_processor(BatchSpanProcessor(ConsoleSpanExporter(out=_nowhere)))
trace.set_tracer_provider(spans)
records = LoggerProvider()
records.add_log_record_processor(
    BatchLogRecordProcessor(ConsoleLogExporter(out=_nowhere))
)
_logs.set_logger_provider(records)


def _chatter() -> None:
    while True:
        logging.getLogger("app").warning("a line")
        gevent.sleep(0.002)


for _ in range(5):
    gevent.spawn(_chatter)
