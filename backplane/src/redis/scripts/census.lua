-- Put before the scripts that change who is in a channel. (No channel has more users in one call than a batch.)
--
-- KEYS  1 hash P:{C}:c     n number of the newest event, t subscriptions, k 1 if counts are told, l count told last, w when
--                          (ms), i:INSTANCE subscriptions of an instance
--       2 hash P:{C}:u     user -> subscriptions, a line feed, info
--       3 zset P:{C}:e     what is told when it lasts -> from when on (ms): u:USER left, v vacated, c count
-- ARGV  1 PUBLISH or SPUBLISH, 2 pub/sub channel
--       3 time after which an end is told (ms), 4 small counts, 5 how often others are told (ms), 6 how often small ones
--         are (ms)
--
-- What was told before and is not known here was lost with the server's data: it is not told again.

local state, users, ends = KEYS[1], KEYS[2], KEYS[3]
local verb, pubsub, settle_ms = ARGV[1], ARGV[2], tonumber(ARGV[3])
local now = now_ms()
local transitions, refused, due = {}, {}, 0

local function number(value)
  return tonumber(value or 0) or 0
end

local function transition(kind, what)
  transitions[#transitions + 1] = kind
  transitions[#transitions + 1] = what
end

-- Numbers begin with the time, in microseconds: those of a channel whose state was lost, or that was empty, only grow.
local function event(kind, body)
  if redis.call('HEXISTS', state, 'n') == 0 then
    redis.call('HSET', state, 'n', digits(now * 1000))
  end
  local sequence = redis.call('HINCRBY', state, 'n', 1)
  redis.call(verb, pubsub, '\1\16' .. struct.pack('>I8', sequence) .. kind .. body)
end

local function mark(what, at)
  redis.call('ZADD', ends, digits(at), what)
  due = due == 0 and at or math.min(due, at)
end

local function unmark(what)
  return redis.call('ZREM', ends, what) == 1
end

-- False: the channel has no room for the user.
local function set_user(part, id, count, users_max, was_told, info)
  local before = number(redis.call('HGET', part, id))
  local held = redis.call('HGET', users, id)
  local total = 0
  if held then
    local at = string.find(held, '\n', 1, true)
    total, info = number(string.sub(held, 1, at - 1)), string.sub(held, at + 1)
  elseif count > 0 and users_max and redis.call('HLEN', users) >= users_max then
    return false
  end
  if count > 0 then
    redis.call('HSET', part, id, digits(count))
  else
    redis.call('HDEL', part, id)
  end
  total = total + count - before
  if total > 0 then
    redis.call('HSET', users, id, digits(total) .. '\n' .. info)
    if not held then
      event('\1', struct.pack('>I2', #id) .. id .. info)
      if not unmark('u:' .. id) and not was_told then
        transition('joined', id)
      end
    end
  elseif held then
    redis.call('HDEL', users, id)
    event('\2', id)
    mark('u:' .. id, now + settle_ms)
  elseif was_told then
    mark('u:' .. id, now + settle_ms)
  end
  return true
end

-- The change of the channel's subscriptions.
local function set_subscriptions(instance, count)
  local field = 'i:' .. instance
  local before = number(redis.call('HGET', state, field))
  if count > 0 then
    redis.call('HSET', state, field, digits(count))
  else
    redis.call('HDEL', state, field)
  end
  return count - before
end

local function tell_count(total)
  local told = number(redis.call('HGET', state, 'l'))
  if redis.call('HGET', state, 'k') ~= '1' or told == total then
    unmark('c')
    return
  end
  local told_at = number(redis.call('HGET', state, 'w'))
  local interval = tonumber(total <= tonumber(ARGV[4]) and ARGV[6] or ARGV[5])
  if now - told_at >= interval then
    redis.call('HSET', state, 'l', digits(total), 'w', digits(now))
    unmark('c')
    event('\3', struct.pack('>I8', total))
    transition('count', total)
  elseif not redis.call('ZSCORE', ends, 'c') then
    mark('c', told_at + interval)
  end
end

-- {number of the newest event, subscriptions, users, ms until something is to be settled by the caller or 0,
--  {user that was refused, …}, {transition, user or number, …},
--  1 if the instance's part is not here though it was written, else 0}
local function verdict(total, is_lost)
  local sequence, count = number(redis.call('HGET', state, 'n')), redis.call('HLEN', users)
  if total == 0 and redis.call('ZCARD', ends) == 0 then
    redis.call('DEL', state, users)
  end
  return {sequence, total, count, due > 0 and math.max(due - now, 1) or 0, refused, transitions, is_lost}
end

