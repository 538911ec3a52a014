-- Tells what has lasted.

local is_vacated, is_counted = false, false
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
  tell_count()
end
if is_vacated then
  transition('vacated', '')
end
due = first_due()
return verdict(0, 0)
