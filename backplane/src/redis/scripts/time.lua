-- Put before the scripts that look at the time: the server's, so that the clocks of the nodes do not matter.

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Numbers as Redis wants them: tostring() gives up digits above 10^14.
local function digits(number)
  return string.format('%.0f', number)
end

