"""Three lines to standard output, well apart in time, then a word to standard error.

The pauses are longer than the 50 ms within which papa's test module merges neighbouring pieces.
"""

import sys
import time

PAUSE_SECONDS = 0.1

lines = (
    "Version: " + sys.version.partition(" ")[0],
    "Executable: " + sys.executable,
    "Args: " + " ".join(sys.argv[1:]),
)
for line in lines:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
    if line is not lines[-1]:
        time.sleep(PAUSE_SECONDS)
sys.stderr.write("done")
