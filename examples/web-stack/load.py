"""Clients that send one numbered request after the other until they are told to end: load.py URL STEP

Every request has a connection of its own. At SIGTERM the requests under way are finished; then how many there were and
how many failed is printed, and everything that was sent is added to the file `sent`. Exits with 1 if one failed.
"""

import collections
import http.client
import signal
import sys
import threading
import urllib.parse

CLIENTS = 6
# Far above what a request takes, even one that waits for its turn while everything is replaced.
TIMEOUT_SECONDS = 30

ending = threading.Event()
failures = collections.Counter()
sent = [[] for _ in range(CLIENTS)]


def client(number, host, step):
    while not ending.is_set():
        request = "n=%s.%d.%d" % (step, number, len(sent[number]))
        connection = http.client.HTTPConnection(host, timeout=TIMEOUT_SECONDS)
        try:
            connection.request("GET", "/?" + request)
            answer = connection.getresponse()
            body = answer.read().decode()
            if answer.status != 200 or request not in body:
                failures["status %d" % answer.status] += 1
        except (OSError, http.client.HTTPException) as error:
            failures[repr(error)] += 1
        finally:
            connection.close()
        sent[number].append(request)


def main():
    host, step = urllib.parse.urlsplit(sys.argv[1]).netloc, sys.argv[2]
    signal.signal(signal.SIGTERM, lambda *_: ending.set())
    threads = [threading.Thread(target=client, args=(number, host, step)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    ending.wait()
    for thread in threads:
        thread.join()
    requests = [request for one in sent for request in one]
    with open("sent", "a") as file:
        file.writelines(request + "\n" for request in requests)
    print("%s: %d requests, %d errors %s" % (step, len(requests), failures.total(), dict(failures) or ""))
    sys.exit(failures.total() > 0)


main()
