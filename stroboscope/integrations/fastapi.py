"""FastAPI: `install(app)`; see `stroboscope.integrations.starlette`."""

from stroboscope.integrations.starlette import install

__all__ = ["install"]
