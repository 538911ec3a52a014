-- Has the wills of a process's former instance be those of its current one. What others took before stays taken.
--
-- KEYS  hash P:{!nodes}:w:FORMER, hash P:{!nodes}:w:CURRENT
-- Returns {wills that there are}

if redis.call('EXISTS', KEYS[1]) == 1 and redis.call('EXISTS', KEYS[2]) == 0 then
  redis.call('RENAME', KEYS[1], KEYS[2])
end
return {redis.call('HLEN', KEYS[2])}
