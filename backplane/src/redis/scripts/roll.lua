-- Who is in a channel.
--
-- KEYS  hash P:{C}:c, hash P:{C}:u (scripts/census.lua has what is in them)
-- ARGV  1 for the users, 0 without
-- Returns {number of the newest event, subscriptions, users, {instance, …}, {user, info, …}}

local sequence, subscriptions, instances, list = 0, 0, {}, {}
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
if ARGV[1] == '1' then
  local users = redis.call('HGETALL', KEYS[2])
  for i = 1, #users, 2 do
    list[#list + 1] = users[i]
    list[#list + 1] = string.sub(users[i + 1], string.find(users[i + 1], '\n', 1, true) + 1)
  end
end
return {sequence, subscriptions, redis.call('HLEN', KEYS[2]), instances, list}
