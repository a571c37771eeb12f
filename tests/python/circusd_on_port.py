"""circusd 0.17.2 as it is, its papa client pointed at a port: circusd_on_port.py PORT [CIRCUSD ARGUMENT...]

Circus ignores a tcp:// papa_endpoint (it assigns to the function instead of calling it), so the default port is set here.
"""

import sys

import papa

papa.set_default_port(int(sys.argv.pop(1)))
# Never the original server in place of the kernel under test.
papa.Papa.spawned = True

from circus.circusd import main  # noqa: E402

main()
