-- A round of the node registry: renews a lease, writes a record if there is one, and answers who lives where that is asked.
--
-- Every node does this once a second, so what it costs must not grow with their number. All entries are looked through only
-- for who asks, and ten times in a lease for all nodes together.
--
-- KEYS  hash P:{!nodes}, hash P:{!nodes}:i, string P:{!nodes}:s: there while nobody need look through all entries
-- ARGV  1 lease in ms
--       2 instance whose lease is renewed
--       3 name of the record, empty without one
--       4 process that the record belongs to (8 bytes)
--       5 record
--       6 generation of the registry (8 bytes), if it has none
--       7 `1`: who lives is asked
-- P:{!nodes} holds name -> end of the lease (8 bytes, ms, big-endian), process (8 bytes), record.
-- P:{!nodes}:i holds instance -> end of its lease (ms); negative: it ended, and somebody removes its members until then.
-- In it, `!` holds the generation: who finds another one knows that the data was lost. `@` is when somebody last asked (ms),
-- and `?` until when nobody is declared dead (ms).
-- Returns {refused 0 or 1: another living process has that name,
--          instance 0 new, 1 renewed, 2 over (nothing of it was renewed),
--          generation,
--          {instance whose members the caller is to remove, …},
--          {name, record, …}, {instance, ms left, …}: empty where nobody asked}

local nodes, instances, swept = KEYS[1], KEYS[2], KEYS[3]
local lease, now = tonumber(ARGV[1]), now_ms()

local function end_of(held)
  return #held >= 16 and struct.unpack('>I8', held) or 0
end

-- First, a write that frees memory or nothing: after it, those that take some are allowed above maxmemory too. What keeps
-- the nodes alive is small.
redis.call('HDEL', nodes, '')

-- Nobody asked for half a lease, though each asks ten times in one: the server was away, or its clock has jumped. Those who
-- live need a lease to say so. If the clock was set back, leases end when they would have, counted from now.
local asked = tonumber(redis.call('HGET', instances, '@') or 0)
local doubt = tonumber(redis.call('HGET', instances, '?') or 0)
local is_back = asked > now + 1000
if is_back or (asked > 0 and now - asked > lease / 2) then
  doubt = now + lease
  redis.call('HSET', instances, '?', digits(doubt))
end
if doubt > now + lease then
  doubt = now + lease
end
redis.call('HSET', instances, '@', digits(now))

-- When a lease ends that is held until then.
local function counted(until_ms)
  if is_back and until_ms > now + lease then
    until_ms = now + lease
  end
  return math.max(until_ms, doubt)
end

local refused = 0
if ARGV[3] ~= '' then
  local held = redis.call('HGET', nodes, ARGV[3])
  if held and end_of(held) > now and string.sub(held, 9, 16) ~= ARGV[4] then
    refused = 1
  else
    redis.call('HSET', nodes, ARGV[3], struct.pack('>I8', now + lease) .. ARGV[4] .. ARGV[5])
  end
end

redis.call('HSETNX', instances, '!', ARGV[6])

local own = redis.call('HGET', instances, ARGV[2])
local known = 0
if own then
  -- Below 0, somebody is removing what it left.
  known = tonumber(own) > 0 and counted(tonumber(own)) > now and 1 or 2
end
if known < 2 then
  redis.call('HSET', instances, ARGV[2], digits(now + lease))
end

local generation = redis.call('HGET', instances, '!')
if is_back then
  -- It would stay until the time from which the clock was set back.
  redis.call('DEL', swept)
end
local is_asked = ARGV[7] == '1'
local is_due = redis.call('SET', swept, '', 'PX', math.max(1, math.floor(lease / 10)), 'NX')
if not is_asked and not is_due then
  return {refused, known, generation, {}, {}, {}}
end

local records = {}
local all = redis.call('HGETALL', nodes)
for i = 1, #all, 2 do
  local until_ms = end_of(all[i + 1])
  if counted(until_ms) < until_ms then
    redis.call('HSET', nodes, all[i], struct.pack('>I8', counted(until_ms)) .. string.sub(all[i + 1], 9))
  end
  if counted(until_ms) > now then
    records[#records + 1] = all[i]
    records[#records + 1] = string.sub(all[i + 1], 17)
  else
    redis.call('HDEL', nodes, all[i])
  end
end

local live, ended = {}, {}
all = redis.call('HGETALL', instances)
for i = 1, #all, 2 do
  local until_ms = tonumber(all[i + 1]) or 0
  if is_back and -until_ms > now + lease then
    until_ms = -(now + lease)
    redis.call('HSET', instances, all[i], digits(until_ms))
  end
  if all[i] == '!' or all[i] == '@' or all[i] == '?' then
    -- No instance.
  elseif until_ms > 0 and counted(until_ms) > now then
    if counted(until_ms) < until_ms then
      redis.call('HSET', instances, all[i], digits(counted(until_ms)))
    end
    live[#live + 1] = all[i]
    live[#live + 1] = counted(until_ms) - now
  elseif now >= doubt and -until_ms <= now then
    redis.call('HSET', instances, all[i], digits(-(now + lease)))
    ended[#ended + 1] = all[i]
  end
end
if not is_asked then
  records, live = {}, {}
end
return {refused, known, generation, ended, records, live}
