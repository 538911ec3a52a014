-- How many are in channels.
--
-- KEYS  for each channel hash P:{C}:ps, hash P:{C}:pu
-- Returns {subscriptions, users, subscriptions, users, …}

local sums = {}
for i = 1, #KEYS, 2 do
  sums[i] = tonumber(redis.call('HGET', KEYS[i], 't') or 0)
  sums[i + 1] = redis.call('HLEN', KEYS[i + 1])
end
return sums
