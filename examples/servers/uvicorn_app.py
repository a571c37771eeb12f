"""uvicorn with a second between "accept no more" and its own stop, which closes connections whose request it has not read yet."""

import asyncio
import sys

import uvicorn


class Server(uvicorn.Server):
    async def shutdown(self, sockets=None):
        loop = asyncio.get_running_loop()
        for server in self.servers:
            for listener in server.sockets:
                loop.remove_reader(listener.fileno())
        await asyncio.sleep(1)
        await super().shutdown(sockets)


Server(uvicorn.Config("app:asgi", fd=int(sys.argv[1]), loop="asyncio", access_log=False)).run()
