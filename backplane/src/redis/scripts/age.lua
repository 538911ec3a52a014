-- Put before the scripts that look at the age of publications.
--
-- An entry of a stream has the id OFFSET-MS: its offset, and the server's time when it was published. Offsets have no
-- holes, so the first entry that is young enough is found by halving.

local NO_TAG = string.rep('\0', 8)

local function parse(id)
  local offset, ms = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(offset), tonumber(ms)
end

local function entry_at(stream, offset)
  local id = digits(offset)
  return redis.call('XRANGE', stream, id, id)[1]
end

-- The offset of the first entry that is younger than `age` ms, top + 1 if none is.
local function first_young(stream, top, age)
  local oldest = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
  if not oldest then
    return top + 1
  end
  local horizon = now_ms() - age
  local low, low_ms = parse(oldest[1])
  if low_ms > horizon then
    return low
  end
  local high = top + 1
  while high - low > 1 do
    local middle = math.floor((low + high) / 2)
    local entry = entry_at(stream, middle)
    local _, ms = parse(entry and entry[1] or '0-0')
    if ms > horizon then
      high = middle
    else
      low = middle
    end
  end
  return high
end
