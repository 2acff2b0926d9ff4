-- wrk: sends the same few requests in turn, and ends with one line of JSON.
-- Arguments: method, path (its {id} becomes 1, 2, …), how many requests, the file with a note, and an access token for
-- each owner.
-- A replacement has a number that none had before, in this run or an earlier one: one with the same text changes nothing.
local requests, turn, sent, started = {}, 0, 0, os.time()
local MARK, NUMBER = ("#"):rep(20), "%010d%010d"

function init(args)
  local note, owners = io.open(args[4]):read("a"), #args - 4
  if args[1] == "PUT" then
    note = note:gsub('"}', " " .. MARK .. '"}')
  end
  for id = 1, tonumber(args[3]) do
    local path = args[2]:gsub("{id}", id)
    if owners > 0 then
      wrk.headers["Authorization"] = "Bearer " .. args[5 + (id - 1) % owners]
    end
    requests[id] = wrk.format(args[1], path, nil, args[1] ~= "GET" and note or nil)
    local first, last = requests[id]:find(MARK, 1, true)
    if first then
      requests[id] = {requests[id]:sub(1, first - 1), requests[id]:sub(last + 1)}
    end
  end
end

function request()
  turn = turn % #requests + 1
  local parts = requests[turn]
  if type(parts) == "string" then
    return parts
  end
  sent = sent + 1
  return parts[1] .. NUMBER:format(started, sent) .. parts[2]
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '\n{"requests": %d, "microseconds": %d, "p50": %d, "p95": %d, "p99": %d, "refused": %d, "broken": %d}\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(95),
    latency:percentile(99),
    errors.status, errors.connect + errors.read + errors.write + errors.timeout
  ))
end
