"""Daphne with a stop that waits: on TERM it cancels what it is doing. Here it accepts no more and finishes first, at most 5 s."""

import app
from daphne.http_protocol import HTTPFactory
from daphne.server import Server
from twisted.internet import defer, reactor, tcp

asgi = app.asgi
connections = set()
build = HTTPFactory.buildProtocol
cancel = Server.kill_all_applications


def counted(self, address):
    protocol = build(self, address)
    lost = protocol.connectionLost

    def forget(reason):
        connections.discard(protocol)
        lost(reason)

    protocol.connectionLost = forget
    connections.add(protocol)
    return protocol


def drain(self):
    for reader in reactor.getReaders():
        if isinstance(reader, tcp.Port):
            reader.stopListening()
    finished = defer.Deferred()

    def look(left):
        if connections and left:
            reactor.callLater(0.05, look, left - 1)
        else:
            finished.callback(None)

    # Not at once: what was accepted in this round of the reactor becomes a connection in the next.
    reactor.callLater(0.1, look, 100)
    return finished.addCallback(lambda _: cancel(self))


HTTPFactory.buildProtocol = counted
# What daphne does as its reactor is asked to end; the reactor waits for what this returns.
Server.kill_all_applications = drain
