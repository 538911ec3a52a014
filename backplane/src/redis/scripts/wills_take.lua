-- Takes some wills of a dead instance, for the caller to tell: nobody else gets them.
--
-- KEYS  hash P:{!nodes}:w:INSTANCE
-- ARGV  1 about how many; a small hash is taken whole
-- Returns {{will, …}, left}

local held = redis.call('HSCAN', KEYS[1], '0', 'COUNT', ARGV[1])[2]
local wills = {}
for i = 1, #held, 2 do
  redis.call('HDEL', KEYS[1], held[i])
  wills[#wills + 1] = held[i + 1]
end
return {wills, redis.call('HLEN', KEYS[1])}
