-- Has a channel begin a new epoch, unless it has done so since: for nodes that know that history was rewritten.
-- The epoch alone decides, not what was published in it meanwhile: once rewritten, none of its positions is worth
-- anything, and on a busy channel a node would else be too late each time.
--
-- What the stream has stays and keeps its offsets, now of the new epoch: it was accepted and survived, and whoever is
-- told the gap finds it there.
--
-- KEYS  hash P:{C}:m
-- ARGV  1 the epoch to end (8 bytes)
--       2 the epoch to begin (8 bytes)
-- Returns {epoch, offset, tag, age in ms} as they are now, or {} for a channel without state

local meta = KEYS[1]
local state = redis.call('HMGET', meta, 'e', 'o', 't', 'a')
if not state[1] then
  return {}
end
if state[1] == ARGV[1] then
  state[1] = ARGV[2]
  redis.call('HSET', meta, 'e', state[1])
  redis.call('PEXPIRE', meta, state[4])
end
return {state[1], tonumber(state[2]), state[3], tonumber(state[4])}
