"""Runs a command in a control group of its own that is marked as delegated, as systemd does for `Delegate=yes`.

Arguments: the new group's name, and the command. Ends with 125 where no cgroup2 file system takes a group, or no mark.
"""

import os
import sys

name, command = sys.argv[1], sys.argv[2:]
try:
    with open("/proc/self/mountinfo") as mounts:
        at = next(line.split(" ")[4] for line in mounts if " - cgroup2 " in line)
    with open("/proc/self/cgroup") as groups:
        own = next(line[3:].strip() for line in groups if line.startswith("0::"))
    group = at + own.rstrip("/") + "/" + name
    os.mkdir(group)
    os.setxattr(group, "user.delegate", b"1")
    with open(group + "/cgroup.procs", "w") as procs:
        procs.write("0")
except (OSError, StopIteration) as error:
    print("no control group of one's own: %s" % error, file=sys.stderr)
    sys.exit(125)
os.execvp(command[0], command)
