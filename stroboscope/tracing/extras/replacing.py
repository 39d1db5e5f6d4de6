"""Methods replaced for a while, and put back."""

from __future__ import annotations

from typing import Any


class Replacements:
    """Attributes of types, as they were."""

    def __init__(self) -> None:
        self._put: list[tuple[type, str, Any, Any]] = []

    def put(self, owner: type, name: str, made: Any) -> None:
        """Replace what stands in the type itself."""
        before = vars(owner)[name]
        setattr(owner, name, made)
        self._put.append((owner, name, before, made))

    def restore(self) -> int:
        """Put all back, the latest first; how many somebody else has replaced since.

        Those stay with theirs: what they call of ours does nothing without a capture.
        """
        left = 0
        while self._put:
            owner, name, before, made = self._put.pop()
            if vars(owner).get(name) is made:
                setattr(owner, name, before)
            else:
                left += 1
        return left
