-- Changes the wills of an instance that lives: others may have told those of one that does not.
--
-- KEYS  hash P:{!nodes}:w:INSTANCE, hash P:{!nodes}:i
-- ARGV  1 instance, then for each change: connection, will or empty (it is taken back)
-- Returns {changed 0 or 1}

local until_ms = tonumber(redis.call('HGET', KEYS[2], ARGV[1]) or 0)
if until_ms <= 0 then
  return {0}
end
for i = 2, #ARGV, 2 do
  if ARGV[i + 1] == '' then
    redis.call('HDEL', KEYS[1], ARGV[i])
  else
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
  end
end
return {1}
