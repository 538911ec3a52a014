-- Counts as use of channels, so that their state does not expire.
--
-- KEYS  hashes P:{C}:m
-- ARGV  their ages in ms
-- Returns {number of channels that have state}

local renewed = 0
for i, meta in ipairs(KEYS) do
  renewed = renewed + redis.call('PEXPIRE', meta, ARGV[i])
end
return {renewed}
