"""Everything that a GPU can tell about this package, in one command that survives its own failures: `python -m benchmarks.gpu_report`."""

import time

# Before anything slow is imported: the budget counts from here.
STARTED = time.monotonic()
