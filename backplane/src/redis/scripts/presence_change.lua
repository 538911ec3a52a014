-- Makes entries of an instance what is given; those that are not given stay.
--
-- ARGV  7 instance, 8 whether counts are told (0, 1, or empty: as before), 9 whether the channel was told to be occupied
--         (0 or 1), 10 change: as it comes, whole: all again, dead: what an instance left is removed
--       then for each entry: connection, entry, most users of the channel or empty, whether it was told to have joined
--         (0 or 1)

local instance, was_told, mode = ARGV[7], ARGV[9] == '1', ARGV[10]
local is_lost = mode == 'change' and was_told and redis.call('HEXISTS', state, 'i:' .. instance) == 0 and 1 or 0
local owner = mode == 'dead' and instance or nil
for i = 11, #ARGV, 4 do
  if not set_entry(ARGV[i], instance, ARGV[i + 1], tonumber(ARGV[i + 2]), ARGV[i + 3] == '1', owner) then
    refused[#refused + 1] = ARGV[i]
  end
end
if total ~= total_before then
  redis.call('HSET', state, 't', digits(total))
end
if total > 0 and ARGV[8] ~= '' then
  redis.call('HSET', state, 'k', ARGV[8])
end
if total_before == 0 and total > 0 then
  if not unmark('v') and not was_told then
    table.insert(transitions, 1, '')
    table.insert(transitions, 1, 'occupied')
  end
elseif total == 0 and (total_before > 0 or was_told) then
  mark('v', now + settle_ms)
end
tell_count()
local of_process = 0
if mode ~= 'change' then
  due = first_due()
  -- Instances of a process differ in what follows the last dot.
  local process = 'i:' .. string.match(instance, '^.*%.')
  local all = redis.call('HGETALL', state)
  for i = 1, #all, 2 do
    if string.sub(all[i], 1, #process) == process then
      of_process = of_process + number(all[i + 1])
    end
  end
end
return verdict(is_lost, of_process)
