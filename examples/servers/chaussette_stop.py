"""A stop for chaussette's backend wsgiref, given as its `--pre-hook`: by itself TERM ends it in the middle of what it does."""

import signal
import sys

stopping = False


def stop(*_):
    global stopping
    stopping = True


def wsgiref(args):
    from chaussette.backend._wsgiref import ChaussetteServer

    signal.signal(signal.SIGTERM, stop)
    # Called between two requests, and twice a second.
    ChaussetteServer.service_actions = lambda self: sys.exit(0) if stopping else None

