"""What a step's clients found, as a table: table.py step HEADING [SERVICE...], then table.py all

`step` reads what load.py wrote to run/load and wrk to run/wrk.SERVICE, prints a line for each service, and adds them to the file
run/steps. `all` prints those. Exits with 1 if a request failed.
"""

import json
import os
import sys


def of_wrk(path):
    """What wrk says it did: as load.py says it."""
    with open(path) as file:
        text = file.read()
    for line in text.splitlines():
        if line.startswith("RESULT "):
            _, requests, worst_us, *errors = line.split()
            counts = {name: int(count) for name, count in (error.split("=") for error in errors)}
            failed = {"wrk: " + name: count for name, count in counts.items() if count}
            return {"requests": int(requests), "worst_ms": int(worst_us) / 1000, "errors": failed}
    return {"requests": 0, "worst_ms": 0, "errors": {"wrk said: " + text.strip(): 1}}


def step(heading):
    with open("run/load") as file:
        results = [json.loads(line) for line in file]
    for result in results:
        path = "run/wrk." + result["service"]
        if os.path.exists(path):
            wrk = of_wrk(path)
            result["requests"] += wrk["requests"]
            result["worst_ms"] = max(result["worst_ms"], wrk["worst_ms"])
            result["errors"].update(wrk["errors"])
    print("%-10s %10s %8s %12s" % ("service", "requests", "errors", "worst (ms)"))
    for result in results:
        failed = sum(result["errors"].values())
        print("%-10s %10d %8d %12.1f" % (result["service"], result["requests"], failed, result["worst_ms"]))
        for error, count in result["errors"].items():
            print("    %d x %s" % (count, error))
    with open("run/steps", "a") as file:
        file.write(json.dumps({"heading": heading, "results": results}) + "\n")
    # A service of which nothing was asked has proved nothing.
    return any(result["errors"] or not result["requests"] for result in results)


def everything():
    with open("run/steps") as file:
        steps = [json.loads(line) for line in file]
    services = [result["service"] for result in steps[0]["results"]]
    print("| step | requests | errors | worst ms: %s |" % " | ".join(services))
    print("|---|---|---|%s" % ("---|" * len(services)))
    requests = errors = 0
    worst = dict.fromkeys(services, 0.0)
    for one in steps:
        asked = sum(result["requests"] for result in one["results"])
        failed = sum(sum(result["errors"].values()) for result in one["results"])
        times = {result["service"]: result["worst_ms"] for result in one["results"]}
        requests, errors = requests + asked, errors + failed
        worst = {name: max(worst[name], times[name]) for name in services}
        row(one["heading"], asked, failed, times.values())
    row("**all**", requests, errors, worst.values())
    return errors > 0


def row(heading, requests, errors, times):
    print("| %s | %s | %d | %s |" % (heading, format(requests, ","), errors, " | ".join("%.0f" % time for time in times)))


sys.exit(step(sys.argv[2]) if sys.argv[1] == "step" else everything())
