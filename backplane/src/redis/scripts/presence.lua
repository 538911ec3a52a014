-- Put before the scripts that change who is in a channel. (No channel has more entries in one call than a batch.)
--
-- KEYS  1 hash P:{C}:ps    n number of the newest event, t subscriptions, k 1 if counts are told, l count told last, w when
--                          (ms), i:INSTANCE subscriptions of an instance
--       2 hash P:{C}:pu    user -> connections
--       3 zset P:{C}:pd    what is told when it lasts -> from when on (ms): u:USER left, v vacated, c count
--       4 hash P:{C}:pe    connection -> instance, line feed, entry
--       An entry: subscriptions, line feed, and where somebody is listed: length 2, user, info.
-- ARGV  1 PUBLISH or SPUBLISH, 2 pub/sub channel
--       3 time after which an end is told (ms), 4 small counts, 5 how often others are told (ms), 6 how often small ones
--         are (ms)
--
-- What was told before and is not known here was lost with the server's data: it is not told again.

local state, users, ends, entries = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local verb, pubsub, settle_ms = ARGV[1], ARGV[2], tonumber(ARGV[3])
local now = now_ms()
local transitions, refused, due = {}, {}, 0

local function number(value)
  return tonumber(value or 0) or 0
end

local total = number(redis.call('HGET', state, 't'))
-- One of the keys was lost without the others, as by eviction: the nodes write all of it again.
if (total > 0) ~= (redis.call('HLEN', entries) > 0) then
  redis.call('DEL', state, users, ends, entries)
  total = 0
end
local total_before = total

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

-- The parts of an entry: subscriptions, user or nil, info.
local function parts(entry)
  local at = string.find(entry, '\n', 1, true)
  local subscriptions, who = number(string.sub(entry, 1, at - 1)), string.sub(entry, at + 1)
  if who == '' then
    return subscriptions, nil, ''
  end
  local length = struct.unpack('>I2', who)
  return subscriptions, string.sub(who, 3, 2 + length), string.sub(who, 3 + length)
end

-- The change of an instance's subscriptions.
local function count(instance, change)
  if change ~= 0 and redis.call('HINCRBY', state, 'i:' .. instance, digits(change)) <= 0 then
    redis.call('HDEL', state, 'i:' .. instance)
  end
  total = total + change
end

-- How many connections a user has after one came or went.
local function count_user(user, change)
  local connections = redis.call('HINCRBY', users, user, change)
  if connections <= 0 then
    redis.call('HDEL', users, user)
  end
  return math.max(connections, 0)
end

local function remove(connection, instance, subscriptions, user)
  redis.call('HDEL', entries, connection)
  count(instance, -subscriptions)
  if user then
    local left = count_user(user, -1)
    event('\5', struct.pack('>I4I2', left, #connection) .. connection .. user)
    if left == 0 then
      mark('u:' .. user, now + settle_ms)
    end
  end
end

-- Makes the entry of a connection what is given; one without subscriptions is removed, `owner` given: only from that
-- instance. False: the channel has no room for the user, and the connection is not there.
local function set_entry(connection, instance, entry, users_max, was_told, owner)
  local subscriptions, user, info = parts(entry)
  local held = redis.call('HGET', entries, connection)
  if held then
    local at = string.find(held, '\n', 1, true)
    local of = string.sub(held, 1, at - 1)
    local held_subscriptions, held_user, held_info = parts(string.sub(held, at + 1))
    if owner and of ~= owner then
      return true
    end
    if subscriptions > 0 and held_user == user and held_info == info then
      redis.call('HSET', entries, connection, instance .. '\n' .. entry)
      count(of, -held_subscriptions)
      count(instance, subscriptions)
      return true
    end
    remove(connection, of, held_subscriptions, held_user)
  end
  local is_new = user and redis.call('HEXISTS', users, user) == 0
  if subscriptions == 0 then
    if not held and is_new and was_told then
      mark('u:' .. user, now + settle_ms)
    end
    return true
  end
  if is_new and users_max and redis.call('HLEN', users) >= users_max then
    return false
  end
  redis.call('HSET', entries, connection, instance .. '\n' .. entry)
  count(instance, subscriptions)
  if user then
    event('\4', struct.pack('>I4I2', count_user(user, 1), #connection) .. connection
      .. struct.pack('>I2', #user) .. user .. info)
    if is_new and not unmark('u:' .. user) and not was_told then
      transition('joined', user)
    end
  end
  return true
end

local function tell_count()
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

-- When the first of all ends is to be told, whoever found it.
local function first_due()
  return number(redis.call('ZRANGE', ends, 0, 0, 'WITHSCORES')[2])
end

-- {number of the newest event, subscriptions, users, ms until something is to be settled by the caller or 0,
--  {connection that was refused, …}, {transition, user or number, …},
--  1 if the instance's part is not here though it was written, else 0, subscriptions of the process}
local function verdict(is_lost, of_process)
  local sequence, user_count = number(redis.call('HGET', state, 'n')), redis.call('HLEN', users)
  if total == 0 and redis.call('ZCARD', ends) == 0 then
    redis.call('DEL', state, users, entries)
  end
  return {sequence, total, user_count, due > 0 and math.max(due - now, 1) or 0, refused, transitions, is_lost, of_process}
end

