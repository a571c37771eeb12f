"""A writer under measurement: writer.py GATE READY DONE LINES

Says that it is ready, waits until somebody opens the FIFO, writes so many 61-byte lines as fast as it can, says that it is
done, and stays: its processor time is its own, not the manager's.
"""

import os
import select
import sys
import time

gate, ready, done, count = sys.argv[1:5]
count = int(count)
line = b"%060d\n" % 0
# A little less than a pipe holds.
chunk = memoryview(line * 1024)

os.close(os.open(ready, os.O_WRONLY | os.O_CREAT))
with open(gate, "rb"):
    pass_size = len(chunk)
    left = count * len(line)
    while left:
        try:
            left -= os.write(1, chunk[:min(left, pass_size)])
        except BlockingIOError:
            select.select([], [1], [])
os.close(os.open(done, os.O_WRONLY | os.O_CREAT))
while True:
    time.sleep(1000)
