-- How many are in a channel, and of which instances.
--
-- KEYS  hash P:{C}:ps, hash P:{C}:pu (scripts/presence.lua has what is in them)
-- Returns {number of the newest event, subscriptions, users, {instance, …}}

local sequence, subscriptions, instances = 0, 0, {}
local state = redis.call('HGETALL', KEYS[1])
for i = 1, #state, 2 do
  local field = state[i]
  if field == 'n' then
    sequence = tonumber(state[i + 1])
  elseif field == 't' then
    subscriptions = tonumber(state[i + 1])
  elseif string.sub(field, 1, 2) == 'i:' then
    instances[#instances + 1] = string.sub(field, 3)
  end
end
return {sequence, subscriptions, redis.call('HLEN', KEYS[2]), instances}
