-- Publishes several envelopes without position to one channel, one after the other, in one step.
--
-- KEYS  pub/sub channel: no key, but it routes the call to the slot of the channel
-- ARGV  1 PUBLISH or SPUBLISH
--       2, 3, … envelopes
-- Returns {number of envelopes}

for i = 2, #ARGV do
  redis.call(ARGV[1], KEYS[1], ARGV[i])
end
return {#ARGV - 1}
