"""The C engine. An implementation detail: use `stroboscope._core`."""

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, final

@final
class LabelCell:
    """What a ContextVar holds for a request or a `do` block.

    `labels` is opaque here: the overlay of this cell (a LabelSet). The labels of a
    sample are the overlays from the root cell down, later keys win.
    """

    labels: object | None
    #: Called with no argument while the cell is live, to find late-bound labels.
    source: Callable[[], object | None] | None
    def __init__(
        self, labels: object | None = None, parent: LabelCell | None = None
    ) -> None: ...
    @property
    def parent(self) -> LabelCell | None: ...
    @property
    def serial(self) -> int: ...
    @property
    def sampled(self) -> bool:
        """Whether any sample was taken under this cell."""
    def publish(self) -> None:
        """Hand the final labels to the engine, if a sample was taken. Idempotent."""

LABELS: ContextVar[LabelCell | None]

def start(period_ns: int) -> None: ...
def stop() -> None: ...
def info() -> dict[str, Any]: ...
