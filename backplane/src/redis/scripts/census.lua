-- Makes an instance's part in a channel what is given, or tells what has lasted; and says what that changed.
--
-- KEYS  1 hash P:{C}:c     n number of the newest event, t subscriptions, k 1 if counts are told, l count told last, w when
--                          (ms), i:INSTANCE subscriptions of an instance
--       2 hash P:{C}:u     user -> subscriptions, a line feed, info
--       3 zset P:{C}:e     what is told when it lasts -> from when on (ms): u:USER left, v vacated, c count
--       4 hash P:{C}:n:I   user -> subscriptions of the instance
--       5 the same of the instance that this one goes on for, if there is one
-- ARGV  1 PUBLISH or SPUBLISH, 2 pub/sub channel
--       3 time after which an end is told (ms), 4 small counts, 5 how often others are told (ms)
--       6 mode: change (users that are not given stay), whole (they are gone), clear (the same for a dead instance),
--         settle (only what has lasted)
--       7 instance, 8 instance that it goes on for or empty, 9 its subscriptions, 10 whether counts are told (0, 1, or
--         empty: as before), 11 whether the channel was told to be occupied (0 or 1), 12 how often small counts are told
--         (ms)
--       then for each user: id, subscriptions, most users of the channel or empty, whether it was told to have joined
--         (0 or 1), info
-- Returns {number of the newest event, subscriptions, users, ms until something is to be settled by the caller or 0,
--          {user that was refused, …}, {transition, user or number, …},
--          1 if the instance's part is not here though it was written, else 0}
--
-- What was told before and is not known here was lost with the server's data: it is not told again.

local state, users, ends = KEYS[1], KEYS[2], KEYS[3]
local verb, pubsub, settle_ms, mode = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[6]
local now = now_ms()
local transitions, refused, due, is_lost = {}, {}, 0, 0

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

local function clear_users(part, kept)
  for _, id in ipairs(redis.call('HKEYS', part)) do
    if not kept[id] then
      set_user(part, id, 0)
    end
  end
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
  local interval = tonumber(total <= tonumber(ARGV[4]) and ARGV[12] or ARGV[5])
  if now - told_at >= interval then
    redis.call('HSET', state, 'l', digits(total), 'w', digits(now))
    unmark('c')
    event('\3', struct.pack('>I8', total))
    transition('count', total)
  elseif not redis.call('ZSCORE', ends, 'c') then
    mark('c', told_at + interval)
  end
end

local function change()
  local subscriptions, kept = tonumber(ARGV[9]), {}
  local was_told = ARGV[11] == '1'
  if mode == 'change' and was_told and redis.call('HEXISTS', state, 'i:' .. ARGV[7]) == 0 then
    is_lost = 1
  end
  for i = 13, #ARGV, 5 do
    local id, count, was_told = ARGV[i], tonumber(ARGV[i + 1]), ARGV[i + 3] == '1'
    kept[id] = true
    if not set_user(KEYS[4], id, count, tonumber(ARGV[i + 2]), was_told, ARGV[i + 4]) then
      refused[#refused + 1] = id
      subscriptions = subscriptions - count
    end
  end
  if mode ~= 'change' then
    clear_users(KEYS[4], kept)
  end
  local before = number(redis.call('HGET', state, 't'))
  local total = before + set_subscriptions(ARGV[7], subscriptions)
  if KEYS[5] then
    clear_users(KEYS[5], {})
    total = total + set_subscriptions(ARGV[8], 0)
  end
  if total ~= before then
    redis.call('HSET', state, 't', digits(total))
  end
  if total > 0 and ARGV[10] ~= '' then
    redis.call('HSET', state, 'k', ARGV[10])
  end
  if before == 0 and total > 0 then
    if not unmark('v') and not was_told then
      table.insert(transitions, 1, '')
      table.insert(transitions, 1, 'occupied')
    end
  elseif total == 0 and (before > 0 or was_told) then
    mark('v', now + settle_ms)
  end
  return total
end

local function settle()
  local total, is_vacated, is_counted = number(redis.call('HGET', state, 't')), false, false
  for _, what in ipairs(redis.call('ZRANGEBYSCORE', ends, '-inf', digits(now))) do
    redis.call('ZREM', ends, what)
    if what == 'v' then
      is_vacated = true
    elseif what == 'c' then
      is_counted = true
    else
      transition('left', string.sub(what, 3))
    end
  end
  if is_counted then
    tell_count(total)
  end
  if is_vacated then
    transition('vacated', '')
  end
  return total
end

local total
if mode == 'settle' then
  total = settle()
else
  total = change()
  tell_count(total)
end
local sequence, users_count = number(redis.call('HGET', state, 'n')), redis.call('HLEN', users)
if mode ~= 'change' then
  local first = redis.call('ZRANGE', ends, 0, 0, 'WITHSCORES')
  due = number(first[2])
end
if total == 0 and redis.call('ZCARD', ends) == 0 then
  redis.call('DEL', state, users)
end
return {sequence, total, users_count, due > 0 and math.max(due - now, 1) or 0, refused, transitions, is_lost}
