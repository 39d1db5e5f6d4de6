"""A plugin for pytest: a test may be skipped only for a reason that is listed here.

Any other fails it, so that nothing is left out because a package is missing, or a
condition holds that nobody thought of.
"""

import re
import sys
from collections.abc import Generator

import pytest

#: Up to here everything of the group `test` is there, and must be.
NEXT_PYTHON = (3, 14)
#: What a machine cannot give; the rest of a reason says why not.
OF_MACHINES = (
    "to be another user, too, takes root",
    "mounting takes root",
    "a full file system needs the right to mount one",
    "no control group can be made here: ",
    "control groups do not limit memory here: ",
    "no containers here: ",
    "nobody to be without root's rights: ",
    "no Jaeger: ",
    "no Go on this machine: Alloy's own delta was not run",
    "Alloy's own delta was not run: ",
    "npm and node are not installed: ",
    "Perfetto's trace processor needs node",
    "the kernel is older than 5.14: ",
)
#: What an interpreter is not, or comes without.
OF_INTERPRETERS = (
    "before 3.12 no interpreter has a GIL of its own",
    "from 3.12 pymalloc itself needs the state of a thread",
    "this interpreter comes without its tests",
    "from 3.15 any thread that ends frees its state after it let go of the GIL, ",
)
#: Packages that have no wheels for an interpreter before it is released.
OF_THE_NEXT = (
    "gevent is not installed",
    "greenlet is not installed",
    "greenlets are looked for where they are",
    "uvloop is not installed",
    "no uvloop here",
    "no gevent here",
    "memray is in the test group where it has wheels",
    "opentelemetry-instrumentation-django is part of the extra `test`",
    "py-spy is not installed here: ",
    "Perfetto's trace processor needs ",
)


def is_listed(reason: str, python: tuple[int, ...] = sys.version_info[:2]) -> bool:
    """Whether a test may be skipped for it by this interpreter."""
    listed = OF_MACHINES + OF_INTERPRETERS
    if python >= NEXT_PYTHON:
        listed += OF_THE_NEXT
    return reason.startswith(listed)


def _judged(
    report: pytest.TestReport | pytest.CollectReport,
) -> pytest.TestReport | pytest.CollectReport:
    if report.outcome == "skipped" and isinstance(report.longrepr, tuple):
        path, line, text = report.longrepr
        if not is_listed(re.sub(r"^Skipped: ", "", text)):
            report.outcome = "failed"
            listed = "no reason listed in tests/helpers/listed_skips.py"
            report.longrepr = f"{path}:{line}: {text}: {listed}"
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, object]:
    return _judged((yield))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, object]:
    return _judged((yield))
