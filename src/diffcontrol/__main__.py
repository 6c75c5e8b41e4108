"""`python -m diffcontrol`."""

import sys

from ._cli import main

sys.exit(main())
