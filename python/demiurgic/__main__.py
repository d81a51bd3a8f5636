"""`python -m demiurgic` is `demiurgic`."""

import sys

from demiurgic.cli import main

sys.exit(main())
