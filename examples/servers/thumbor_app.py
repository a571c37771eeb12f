"""thumbor, with a stop that works: its own asks the reactor for what tornado has no longer, and never ends, or drops requests."""

import asyncio
import signal

import thumbor.server


def on_term(server, config):
    loop = asyncio.get_event_loop()

    async def finish():
        server.stop()
        # Idle connections of keep-alive clients: at most 5 s.
        for _ in range(100):
            if not server._connections:
                break
            await asyncio.sleep(0.05)
        loop.stop()

    loop.add_signal_handler(signal.SIGTERM, lambda: loop.create_task(finish()))
    print("serving", flush=True)


thumbor.server.setup_signal_handler = on_term
thumbor.server.main()
