-- Removes members of an instance, but not those that meanwhile are another one's.
--
-- KEYS  hash P:{C}:p: connection -> instance, a line feed, member
-- ARGV  1 instance
--       2, 3, … connections
-- Returns {number of members that were removed}

local mark, removed = ARGV[1] .. '\n', 0
for i = 2, #ARGV do
  local value = redis.call('HGET', KEYS[1], ARGV[i])
  if value and string.sub(value, 1, #mark) == mark then
    removed = removed + redis.call('HDEL', KEYS[1], ARGV[i])
  end
end
return {removed}
