-- What wrk found, in one line for table.py; and a breath between two requests of a connection, so that eight processors are not
-- needed to have five services and their clients on one machine.
local breath_ms = tonumber(os.getenv("WRK_BREATH_MS") or "2")

function delay()
    return breath_ms
end

function done(summary, latency)
    local errors = summary.errors
    io.write(string.format("RESULT %d %d connect=%d read=%d write=%d status=%d timeout=%d\n", summary.requests, latency.max,
        errors.connect, errors.read, errors.write, errors.status, errors.timeout))
end
