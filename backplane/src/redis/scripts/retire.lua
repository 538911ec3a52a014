-- Takes a node's record away if it belongs to the process.
--
-- KEYS  hash P:{!nodes}
-- ARGV  1 name
--       2 process (8 bytes)
-- Returns {removed 0 or 1}

local held = redis.call('HGET', KEYS[1], ARGV[1])
if held and string.sub(held, 9, 16) == ARGV[2] then
  return {redis.call('HDEL', KEYS[1], ARGV[1])}
end
return {0}
