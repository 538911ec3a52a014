-- Lets go of what a channel keeps. Where it stands, in P:{C}:m, stays.
--
-- KEYS  stream P:{C}:s
-- Returns {number of streams that there were}

return {redis.call('DEL', KEYS[1])}
