-- Publishes with history, with an idempotency key, or with both, in one step.
--
-- KEYS  with history: hash P:{C}:m, stream P:{C}:s; with a key: string P:{C}:i:KEY, last
-- ARGV  1 PUBLISH or SPUBLISH
--       2 pub/sub channel
--       3 idempotency window in ms, empty without a key
--       4 with history the body, without it the envelope
--       and with history:
--       5 size (publications)
--       6 age in ms
--       7 tag of this publication (8 bytes)
--       8 epoch (8 bytes), for a channel that has none
-- Returns {duplicate 0 or 1, epoch, offset}; without history {duplicate}
--
-- Age is looked at for every 32nd publication: what is too old is not answered by history.lua anyway, this only
-- gives the memory back.

local TRIM_EACH = 32

-- A duplicate is written once more, because the first copy may not have reached the replicas yet, and WAIT answers for
-- what its own connection wrote: from Redis 7.2 on, a connection that only read waits for nothing.

local key = ARGV[3] ~= '' and KEYS[#KEYS]
if key then
  local answer = redis.call('GET', key)
  if answer then
    redis.call('SET', key, answer, 'KEEPTTL')
  end
  if answer == '' then
    return {1}
  elseif answer then
    return {1, string.sub(answer, 1, 8), (struct.unpack('>I8', answer, 9))}
  end
end

local function remember(answer)
  if key then
    redis.call('SET', key, answer, 'PX', ARGV[3])
  end
end

if not ARGV[5] then
  remember('')
  redis.call(ARGV[1], ARGV[2], ARGV[4])
  return {0}
end

local meta, stream, body, age = KEYS[1], KEYS[2], ARGV[4], ARGV[6]
local state = redis.call('HMGET', meta, 'e', 'o', 't')
local epoch, top, previous = state[1], tonumber(state[2] or 0), state[3] or NO_TAG
if not epoch then
  redis.call('DEL', stream)
  epoch, top, previous = ARGV[8], 0, NO_TAG
end
local offset = top + 1
redis.call('HSET', meta, 'e', epoch, 'o', digits(offset), 't', ARGV[7], 'a', age)
redis.call('PEXPIRE', meta, age)
redis.call('XADD', stream, 'MAXLEN', ARGV[5], digits(offset) .. '-' .. digits(now_ms()), 'b', body)
redis.call('PEXPIRE', stream, age)
if offset % TRIM_EACH == 0 then
  redis.call('XTRIM', stream, 'MINID', digits(first_young(stream, offset, tonumber(age))))
end
local packed = struct.pack('>I8', offset)
remember(epoch .. packed)
local head = '\1' .. string.sub(body, 1, 1) .. epoch .. packed .. previous
redis.call(ARGV[1], ARGV[2], head .. string.sub(body, 2))
return {0, epoch, offset}
