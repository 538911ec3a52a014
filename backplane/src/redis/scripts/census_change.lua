-- Makes a part of what an instance has in a channel what is given; users that are not given stay.
--
-- KEYS  4 hash P:{C}:n:I   user -> subscriptions of the instance
-- ARGV  7 instance, 8 its subscriptions (empty: as before), 9 whether counts are told (0, 1, or empty: as before),
--       10 whether the channel was told to be occupied (0 or 1), 11 whether a loss is to be noticed (0 or 1)
--       then for each user: id, subscriptions, most users of the channel or empty, whether it was told to have joined
--         (0 or 1), info

local part, instance, was_told = KEYS[4], ARGV[7], ARGV[10] == '1'
local held = redis.call('HGET', state, 'i:' .. instance)
local is_lost = ARGV[11] == '1' and was_told and not held and 1 or 0
local subscriptions = tonumber(ARGV[8] ~= '' and ARGV[8] or held or 0)
for i = 12, #ARGV, 5 do
  local id, count = ARGV[i], tonumber(ARGV[i + 1])
  if not set_user(part, id, count, tonumber(ARGV[i + 2]), ARGV[i + 3] == '1', ARGV[i + 4]) then
    refused[#refused + 1] = id
    subscriptions = subscriptions - count
  end
end
local before = number(redis.call('HGET', state, 't'))
local total = before + set_subscriptions(instance, subscriptions)
if total ~= before then
  redis.call('HSET', state, 't', digits(total))
end
if total > 0 and ARGV[9] ~= '' then
  redis.call('HSET', state, 'k', ARGV[9])
end
if before == 0 and total > 0 then
  if not unmark('v') and not was_told then
    table.insert(transitions, 1, '')
    table.insert(transitions, 1, 'occupied')
  end
elseif total == 0 and (before > 0 or was_told) then
  mark('v', now + settle_ms)
end
tell_count(total)
if ARGV[11] ~= '1' then
  -- All that is to be settled, whoever found it.
  due = number(redis.call('ZRANGE', ends, 0, 0, 'WITHSCORES')[2])
end
return verdict(total, is_lost)
