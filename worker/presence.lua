#!lua name=LIBRARY
-- Applies one event to one user's hash, atomically: the rules of docs/redis-keys.md.
--
-- KEYS  1  the user's hash
--       2  the stream of changes; absent on a Redis Cluster, where it cannot share a step with the hash
-- ARGV  1  "online" or "offline"
--       2  seq, decimal          3  conn_id, may be empty    4  platform_id, "0" for none
--       5  received_at, ms       6  command                  7  platform
--       8  operation_id          9  user_id                 10  about how many changes the stream keeps
-- Returns { outcome }, or { outcome, status, previous status } where the status changed; the outcome is
--       "applied", "duplicate" or "stale".
-- LIBRARY and FUNCTION are replaced as this file is loaded, see store.py.
--
-- Private fields of the hash, one for each scope that was ever named:
--       "c:<conn_id>", "p:<platform_id>", "u"  ->  "<on> <off> <platform_id>"
--       the highest seq of an online and of an offline event for exactly this scope, "-" for none, and the
--       platform that a connection belongs to
--       "floor"  the highest seq of a closed connection that was forgotten
-- A session is online while its "on" is not lower than any "off" that covers it, so presence does not depend on
-- the order in which events come.

local CLOSED_MAX = 32 -- closed connections remembered
local ONLINE_MAX = 256 -- sessions online

-- Seqs go up to 2^63-1 and a Lua number is exact to 2^53 only, so they stay decimal strings without leading
-- zeros; "-" is lower than all.
local function higher(a, b)
  if a == '-' or b == '-' then return a ~= '-' end
  if #a ~= #b then return #a > #b end
  return a > b
end

local function highest(a, b)
  if higher(a, b) then return a end
  return b
end

local function scope_of(conn_id, platform_id)
  if conn_id ~= '' then return 'c:' .. conn_id end
  if platform_id ~= '0' then return 'p:' .. platform_id end
  return 'u'
end

local NEVER = { on = '-', off = '-' }

-- All of one user that the rules look at: the public fields, and a record for each scope.
local function read(key)
  local flat = redis.call('HGETALL', key)
  local user, records = {}, {}
  for i = 1, #flat, 2 do
    local name, value = flat[i], flat[i + 1]
    local initial = name:sub(1, 2)
    if initial == 'c:' or initial == 'p:' or name == 'u' then
      local on, off, platform = value:match('^(%S+) (%S+) (%d+)$')
      records[name] = { on = on, off = off, platform = platform }
    else
      user[name] = value
    end
  end
  return user, records
end

-- The highest offline seq that covers the session of this scope.
local function cover(records, scope, record)
  local off = highest(record.off, (records['u'] or NEVER).off)
  if scope:sub(1, 2) == 'c:' and record.platform ~= '0' then
    off = highest(off, (records['p:' .. record.platform] or NEVER).off)
  end
  return off
end

local function is_online(records, scope, record)
  return record.on ~= '-' and not higher(cover(records, scope, record), record.on)
end

-- Takes the event into the records; says what came of it, and whether the record changed.
local function take(records, floor, scope, kind, seq, platform_id)
  local record = records[scope]
  if not record then
    if scope:sub(1, 2) == 'c:' and not higher(seq, floor) then return 'stale', false end
    record = { on = '-', off = '-', platform = '0' }
    records[scope] = record
  end

  if kind == 'offline' then
    if seq == record.off then return 'duplicate', false end
    if higher(record.off, seq) then return 'stale', false end
    record.off = seq
    return 'applied', true
  end

  -- Of two online events of one connection with one seq, the higher platform counts, whichever came first.
  if seq == record.on and tonumber(platform_id) <= tonumber(record.platform) then return 'duplicate', false end
  if higher(record.on, seq) then return 'stale', false end
  local was_online = is_online(records, scope, record)
  record.on = seq
  record.platform = platform_id
  if was_online or is_online(records, scope, record) then return 'applied', true end
  -- Covered, and yet remembered: an older event that names another platform must not open the connection.
  return 'stale', true
end

local function lowest_first(a, b)
  if a.seq ~= b.seq then return higher(b.seq, a.seq) end
  return a.scope < b.scope
end

-- The scopes, lowest seq first, that are too many in a list of { scope, seq }.
local function surplus(list, most)
  if #list <= most then return {} end
  table.sort(list, lowest_first)
  local scopes = {}
  for i = 1, #list - most do scopes[i] = list[i] end
  return scopes
end

-- Keeps the two bounds, noting in touched what it forgot; returns how many sessions are online, and the floor.
local function bound(records, floor, touched)
  local online, closed = {}, {}
  for scope, record in pairs(records) do
    if is_online(records, scope, record) then online[#online + 1] = { scope = scope, seq = record.on } end
  end
  for _, session in ipairs(surplus(online, ONLINE_MAX)) do
    local record = records[session.scope]
    record.on = '-'
    if record.off == '-' then records[session.scope] = nil end
    touched[session.scope] = true
  end
  for scope, record in pairs(records) do
    if scope:sub(1, 2) == 'c:' and not is_online(records, scope, record) then
      closed[#closed + 1] = { scope = scope, seq = highest(record.on, record.off) }
    end
  end
  for _, connection in ipairs(surplus(closed, CLOSED_MAX)) do
    floor = highest(floor, connection.seq)
    records[connection.scope] = nil
    touched[connection.scope] = true
  end
  return math.min(#online, ONLINE_MAX), floor
end

-- The newest event is the one with the highest seq; of two with the same, the online one.
local function is_newest(user, kind, seq)
  if seq ~= user.seq then return higher(seq, user.seq or '-') end
  return kind == 'online' and not user.command:find('Online', 1, true)
end

local function apply(keys, args)
  local key, changes = keys[1], keys[2]
  local kind, seq, conn_id, platform_id, received_at = args[1], args[2], args[3], args[4], args[5]
  local command, platform, operation_id, user_id, changes_maxlen = args[6], args[7], args[8], args[9], args[10]

  local user, records = read(key)
  local scope = scope_of(conn_id, platform_id)
  local outcome, changed = take(records, user.floor or '-', scope, kind, seq, platform_id)
  if not changed then return { outcome } end
  if platform_id == '0' then platform_id = '' end -- as readers see it

  local touched = { [scope] = true }
  local sessions, floor = bound(records, user.floor or '-', touched)
  local previous = user.status or ''
  local status = sessions > 0 and 'online' or 'offline'
  local flipped = status ~= previous

  local fields, gone = {}, {}
  local function set(name, value)
    fields[#fields + 1] = name
    fields[#fields + 1] = value
  end
  if flipped then
    set('status', status)
    set('changed_at', received_at)
  end
  if outcome == 'applied' then
    set('sessions', sessions)
    set('updated_at', highest(received_at, user.updated_at or '-'))
    if is_newest(user, kind, seq) then
      set('seq', seq)
      set('command', command)
      set('conn_id', conn_id)
      set('platform_id', platform_id)
      set('platform', platform)
      set('operation_id', operation_id)
    end
  end
  for name in pairs(touched) do
    local record = records[name]
    if record then
      set(name, record.on .. ' ' .. record.off .. ' ' .. record.platform)
    else
      gone[#gone + 1] = name
    end
  end
  if floor ~= '-' then set('floor', floor) end

  -- The stream first: should it be of a wrong type, nothing has been written yet.
  if flipped and changes then
    redis.call('XADD', changes, 'MAXLEN', '~', changes_maxlen, '*',
      'user_id', user_id, 'status', status, 'previous', previous, 'seq', seq, 'changed_at', received_at,
      'command', command, 'conn_id', conn_id, 'platform_id', platform_id, 'operation_id', operation_id)
  end
  if #fields > 0 then redis.call('HSET', key, unpack(fields)) end
  if #gone > 0 then redis.call('HDEL', key, unpack(gone)) end

  if flipped then return { outcome, status, previous } end
  return { outcome }
end

redis.register_function('FUNCTION', apply)
