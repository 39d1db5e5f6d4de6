"""Run CPython's own tests while every contention is counted: `watched.py TEST ...`.

As `python -m test`, with rates at their finest, and an error at the end if the watching
itself was lost meanwhile.
"""

import signal
import sys
import warnings
from array import array

warnings.simplefilter("ignore")
# Whoever runs in the background ignores it, and some of the tests wait for it.
signal.signal(signal.SIGINT, signal.default_int_handler)
from stroboscope._core.contention import contention  # noqa: E402

contention.set_mutex_fraction(1)
contention.set_block_rate(1)

from test.libregrtest.main import main  # noqa: E402

try:
    main(tests=sys.argv[1:], verbose=0, quiet=True)
except SystemExit as done:
    assert contention.unseen() == ()
    code = done.code
else:
    code = 1
counted = {
    name: sum(array("q", contention.copy(name).column(2)))
    for name in ("mutex", "block")
}
print("counted", counted)
sys.exit(code or not all(counted.values()))
