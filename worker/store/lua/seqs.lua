-- Seqs go up to 2^63-1 and a Lua number is exact to 2^53 only, so they stay decimal strings without leading
-- zeros; "-", no seq, is lower than all: it is short, and comes before the digits.

local NONE = '-'

local function higher(a, b)
  if #a ~= #b then return #a > #b end
  return a > b
end

local function highest(a, b)
  if #a ~= #b then return #a > #b and a or b end
  return a > b and a or b
end

local function lowest(a, b)
  if higher(a, b) then return b end
  return a
end

-- Whether the seq `high` is less than `span` above `low`.
local function is_near(low, high, span)
  if low == high then return true end
  if #high < 16 then return tonumber(high) - tonumber(low) < span end
  local heads = tonumber(high:sub(1, -10)) - (tonumber(low:sub(1, -10)) or 0)
  return heads * 1e9 + tonumber(high:sub(-9)) - tonumber(low:sub(-9)) < span
end
