"""hypercorn with a second between "accept no more" and its own stop, which loses connections it has just accepted."""

import asyncio
import signal
import sys

from hypercorn.asyncio import serve
from hypercorn.config import Config

import app

listener = int(sys.argv[1])


async def stop():
    loop = asyncio.get_running_loop()
    told = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, told.set)
    await told.wait()
    loop.remove_reader(listener)
    await asyncio.sleep(1)


config = Config()
config.bind = [f"fd://{listener}"]
config.graceful_timeout = 10
asyncio.run(serve(app.asgi, config, shutdown_trigger=stop))
