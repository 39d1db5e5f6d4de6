"""`python -m stroboscope.cli`."""

import sys

from stroboscope.cli import main

sys.exit(main())
