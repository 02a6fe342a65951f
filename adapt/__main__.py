"""`python -m adapt`, the same as the command `adapt`."""

import sys

from adapt.cli import main

sys.exit(main())
