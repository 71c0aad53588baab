"""`python -m fused_preact`."""

import sys

from fused_preact.cli import main

sys.exit(main())
