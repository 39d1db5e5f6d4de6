"""stroboscope: labelled profiles and traces of running Python web services.

This roof re-exports what users call; nothing inside imports it.
"""

from stroboscope.labels import (
    Job,
    LabelSet,
    carry,
    current,
    do,
    propagate_to_threads,
    without,
)
from stroboscope.settings import Settings
from stroboscope.stalls import watch_loop
from stroboscope.tracing import log, region, task

__all__ = [
    "Job",
    "LabelSet",
    "Settings",
    "carry",
    "current",
    "do",
    "log",
    "propagate_to_threads",
    "region",
    "task",
    "watch_loop",
    "without",
]
