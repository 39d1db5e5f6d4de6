"""Build the one C extension; every other setting lives in pyproject.toml."""

import os
import sys
from glob import glob

from setuptools import Extension, setup

flags = ["-std=c11", "-Wall", "-Wextra", "-Wshadow", "-fno-strict-aliasing"]
# Our own symbols are reached without a table: the allocation hooks count nanoseconds.
flags.append("-fvisibility=hidden")
if os.environ.get("STROBOSCOPE_SANITIZE"):
    flags += ["-O1", "-g", "-fsanitize=address,undefined"]

native = Extension(
    "stroboscope._core._native",
    sources=sorted(glob("stroboscope/_core/src/*.c")),
    depends=sorted(glob("stroboscope/_core/src/*.h")),
    extra_compile_args=flags,
    libraries=["m"],
)
# The engine needs POSIX per-thread CPU timers; elsewhere the portable twin runs.
pure = bool(os.environ.get("STROBOSCOPE_PURE")) or sys.platform != "linux"
setup(ext_modules=[] if pure else [native])
