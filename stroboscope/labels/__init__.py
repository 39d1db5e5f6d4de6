"""Labels: sets, scopes, buckets. Knows contexts, knows no framework."""

from stroboscope.labels.carry import Job, carry, propagate_to_threads
from stroboscope.labels.scope import current, do, labels_of, set, without
from stroboscope.labels.sets import TABLE, LabelSet, label_set

__all__ = [
    "TABLE",
    "Job",
    "LabelSet",
    "carry",
    "current",
    "do",
    "label_set",
    "labels_of",
    "propagate_to_threads",
    "set",
    "without",
]
