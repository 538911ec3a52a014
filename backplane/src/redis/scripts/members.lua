-- Makes the members that an instance has in a channel exactly those that are given; none: it has left.
--
-- KEYS  hash P:{C}:p: connection -> instance, a line feed, member
-- ARGV  1 instance
--       2, 3, … connection, value, connection, value …
-- Returns {number of members that were removed}

local presence, mark = KEYS[1], ARGV[1] .. '\n'
local kept = {}
for i = 2, #ARGV, 2 do
  kept[ARGV[i]] = true
end
local removed = 0
local all = redis.call('HGETALL', presence)
for i = 1, #all, 2 do
  if string.sub(all[i + 1], 1, #mark) == mark and not kept[all[i]] then
    redis.call('HDEL', presence, all[i])
    removed = removed + 1
  end
end
for i = 2, #ARGV, 2 do
  redis.call('HSET', presence, ARGV[i], ARGV[i + 1])
end
return {removed}
