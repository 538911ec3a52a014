-- Reads where channels stand. Writes nothing.
--
-- KEYS  hashes P:{C}:m
-- Returns for each {epoch, offset, tag, age in ms}, or {} for a channel without state

local found = {}
for i, meta in ipairs(KEYS) do
  local state = redis.call('HMGET', meta, 'e', 'o', 't', 'a')
  found[i] = state[1] and {state[1], tonumber(state[2]), state[3], tonumber(state[4])} or {}
end
return found
