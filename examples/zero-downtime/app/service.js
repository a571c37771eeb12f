// A service in Node: service.js FD HEALTH, the number of the listening socket and the path of a socket of this worker alone.
//
// What it takes to be replaced without an error is in DRAIN 1 to 4, and explained in README.md.
'use strict';

const fs = require('node:fs');
const http = require('node:http');
const net = require('node:net');

const [fd, healthPath] = process.argv.slice(2);
const version = fs.readFileSync('VERSION', 'utf8').trim();

// What clients are promised: an idle connection is not closed before so many seconds. Kept with a margin, since the client's
// clock starts later than ours.
const KEEP_ALIVE_SECONDS = 5;
const MARGIN_SECONDS = 1;

let draining = false;

function answer(request, response) {
  const body = request.url === '/health' ? 'ok\n' : `node ${version} ${process.pid}\n`;
  const headers = { 'Content-Type': 'text/plain', 'Content-Length': body.length };
  // DRAIN 2: this answer is the last one of its connection, and says so. The client opens another, which a new worker accepts.
  if (draining) {
    headers.Connection = 'close';
  } else {
    headers.Connection = 'keep-alive';
    headers['Keep-Alive'] = `timeout=${KEEP_ALIVE_SECONDS}`;
  }
  response.writeHead(200, headers);
  if (request.url === '/slow') {
    response.write(body.slice(0, 5));
    setTimeout(() => response.end(body.slice(5)), 200);
  } else {
    response.end(body);
  }
}

const server = http.createServer(answer);
server.keepAliveTimeout = (KEEP_ALIVE_SECONDS + MARGIN_SECONDS) * 1000;

// Readiness and health are asked of this worker, not of whichever accepts first from the socket they share.
const health = http.createServer(answer);

// Not once(): the signal may come again, from a manager that does not know what one that was killed has sent.
process.on('SIGTERM', () => {
  if (draining) return;
  draining = true;
  // DRAIN 1: accept no more. The socket stays open with the kernel; whoever waits in its queue is served by the others.
  // DRAIN 3: http.Server's own close() closes idle connections from Node 19 on, and so breaks one whose next request is on its
  // way. net.Server's only stops listening; an idle connection has one more answer, or the promised time runs out.
  net.Server.prototype.close.call(server, () => {
    // DRAIN 4: end by yourself, before `graceful_timeout`.
    process.exit(0);
  });
});

// Everything that can fail is done. Only now are connections accepted.
server.listen({ fd: Number(fd) }, () => {
  fs.rmSync(healthPath, { force: true });
  health.listen(healthPath);
});
