-- Tells what has lasted.

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
due = number(redis.call('ZRANGE', ends, 0, 0, 'WITHSCORES')[2])
return verdict(total, 0)
