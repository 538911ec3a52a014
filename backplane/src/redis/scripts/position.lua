-- Reads where a channel stands; counts as use of the channel, so that its state does not expire.
--
-- KEYS  hash P:{C}:m
-- Returns {epoch, offset, tag, age in ms}, or {} for a channel without state

local state = redis.call('HMGET', KEYS[1], 'e', 'o', 't', 'a')
if not state[1] then
  return {}
end
redis.call('PEXPIRE', KEYS[1], state[4])
return {state[1], tonumber(state[2]), state[3], tonumber(state[4])}
