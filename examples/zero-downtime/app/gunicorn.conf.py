"""gunicorn, so that it can be replaced without an error: see README.md."""

import os

wsgi_app = "wsgi:application"
workers = 2
# Threads answer several connections at once and keep them open. The default, sync, closes each after its answer: right too.
worker_class = "gthread"
threads = 8

# A stopping worker finishes its requests for so long; more than the slowest of them, less than the manager's graceful_timeout.
graceful_timeout = 12
# The default of 2 s is below what clients and proxies keep an idle connection for: they would meet it closing.
keepalive = 75
# Two generations run at the same time, and may not share such a file.
control_socket_disable = True


def post_worker_init(worker):
    """One worker has loaded the application: a line on the descriptor that `ready = fd:9` names.

    gunicorn's own READY=1 (`ready = notify`) comes before there is any worker, even if the application cannot be loaded.
    """
    try:
        os.write(9, b"ready\n")
    except OSError:
        pass  # The manager has read its line and closed the pipe, or none asked.
