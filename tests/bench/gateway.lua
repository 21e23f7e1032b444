-- What wrk sends to the gateway: pixels, or batches of events; each event with an id of its own.
local threads = 0

function setup(thread)
  thread:set("number", threads)
  threads = threads + 1
end

function init(args)
  kind, size, sent, start = args[1], tonumber(args[2]), 0, tonumber(args[3])
  headers = { ["content-type"] = "application/json", ["authorization"] = "Bearer " .. (args[4] or "") }
  page = { ["referer"] = args[4] }
  pause_ms = tonumber(args[5] or 0)
  event = '{"event_id":"%s","event_type":"click","event_time":%d,"advertiser_id":"shop","user_id":"user-%d","platform":"meta",'
    .. '"campaign_id":"campaign-%d","ad_id":"ad-%d","creative_id":"creative-7","landing_page":"/mattress"}'
  if pause_ms > 0 then
    function delay() return pause_ms end
  end
end

local function id()
  sent = sent + 1
  return string.format("%s-%d-%d", kind, number, sent)
end

function request()
  if kind == "pixel" then
    local query = "/p.gif?advertiser_id=shop&event_type=view&platform=meta&campaign_id=spring&ad_id=a7&event_id="
    return wrk.format("GET", query .. id(), page)
  end
  local events = {}
  for at = 1, size do
    events[at] = string.format(event, id(), start, sent % 5000, sent % 40, sent % 400)
  end
  return wrk.format("POST", nil, headers, "[" .. table.concat(events, ",") .. "]")
end
