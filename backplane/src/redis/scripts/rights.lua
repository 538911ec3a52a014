-- Tries every command that is used, so that a right that is missing is found before it is needed.
--
-- KEYS  a key of the caller's own, which is gone afterwards
-- ARGV  1 PUBLISH or SPUBLISH, 2 pub/sub channel
-- Returns {command, error} of the first that is forbidden, or {}

local key = KEYS[1]
local tried = {
  {'DEL', key},
  {'HSET', key, 'f', '1'},
  {'PEXPIRE', key, '5000'},
  {'HSETNX', key, 'f', '1'},
  {'HINCRBY', key, 'f', '1'},
  {'HGET', key, 'f'},
  {'HMGET', key, 'f'},
  {'HGETALL', key},
  {'HEXISTS', key, 'f'},
  {'HLEN', key},
  {'HSCAN', key, '0'},
  {'HDEL', key, 'f'},
  {'DEL', key},
  {'SET', key, '', 'PX', '5000'},
  {'GET', key},
  {'DEL', key},
  {'XADD', key, 'MAXLEN', '1', '1-1', 'b', ''},
  {'XRANGE', key, '-', '+', 'COUNT', '1'},
  {'XTRIM', key, 'MINID', '2'},
  {'DEL', key},
  {'ZADD', key, '1', 'm'},
  {'ZRANGE', key, '0', '0', 'WITHSCORES'},
  {'ZRANGEBYSCORE', key, '-inf', '1'},
  {'ZSCORE', key, 'm'},
  {'ZCARD', key},
  {'ZREM', key, 'm'},
  {'DEL', key},
  {'SADD', key, 'm'},
  {'SRANDMEMBER', key, '1'},
  {'SSCAN', key, '0'},
  {'SREM', key, 'm'},
  {'TIME'},
  {ARGV[1], ARGV[2], ''},
}
for _, command in ipairs(tried) do
  local answer = redis.pcall(unpack(command))
  local why = type(answer) == 'table' and answer.err
  -- A server that takes no writes just now, for want of memory or replicas, says so later.
  if why and (string.find(why, 'NOPERM', 1, true) or string.find(why, 'ermission', 1, true)
      or string.find(why, 'ACL failure', 1, true) or string.find(why, "can't run this command", 1, true)) then
    return {command[1], why}
  end
end
return {}
