"""The debug surface."""

from stroboscope.endpoints.surface import Surface

__all__ = ["Surface"]
