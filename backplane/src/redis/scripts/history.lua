-- Reads a part of a channel's history, without what is too old. Writes nothing, and does not count as use of the channel.
--
-- KEYS  hash P:{C}:m, stream P:{C}:s
-- ARGV  1 epoch of the position to begin after (8 bytes); empty: the newest are wanted
--       2 offset of that position
--       3 at most so many publications
--       4 no further publication after so many bytes, each counted as 1,024 and its body
--       5 none that makes it more than so many bytes, each counted as 64 and its body, but for the first
-- Returns {} for a channel without state, else
--   {epoch, offset, tag and age in ms of the channel, continuous 0 or 1,
--    tag of the position to begin after (nil when it is no longer, or not, there),
--    {offset, body, offset, body …}, ms for which the last of these is kept}

local CHUNK = 64

local meta, stream = KEYS[1], KEYS[2]
local state = redis.call('HMGET', meta, 'e', 'o', 't', 'a')
local epoch, top, tag, age = state[1], tonumber(state[2] or 0), state[3], tonumber(state[4] or 0)
if not epoch then
  return {}
end
local limit, bytes, room = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local since = tonumber(ARGV[2])

local function tag_at(offset)
  if offset == top then
    return tag
  elseif offset == 0 then
    return NO_TAG
  end
  local entry = entry_at(stream, offset)
  return entry and string.sub(entry[2][2], 2, 9) or false
end

-- An answer ends at its first nil; false becomes a null in it.
local at, continuous, start = false, 1, top + 1
if ARGV[1] == '' then
  start = math.max(first_young(stream, top, age), top + 1 - limit)
elseif ARGV[1] ~= epoch or since > top then
  continuous = 0
else
  at = tag_at(since)
  local first = first_young(stream, top, age)
  if first > since + 1 then
    continuous = 0
  end
  start = math.max(first, since + 1)
end

local found, last_ms = {}, 0
while start <= top and limit > 0 and bytes > 0 do
  local count = math.min(limit, CHUNK)
  for _, entry in ipairs(redis.call('XRANGE', stream, digits(start), '+', 'COUNT', count)) do
    if bytes <= 0 then
      break
    end
    local offset, ms = parse(entry[1])
    local body = entry[2][2]
    room = room - 64 - #body
    if room < 0 and #found > 0 then
      bytes = 0
      break
    end
    found[#found + 1] = offset
    found[#found + 1] = body
    last_ms = ms
    start = offset + 1
    bytes = bytes - 1024 - #body
  end
  limit = limit - count
end
return {epoch, top, tag, age, continuous, at, found, math.max(0, last_ms + age - now_ms())}
