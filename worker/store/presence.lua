#!lua name=LIBRARY
-- One user's presence, one atomic step at a time: the rules of docs/redis-keys.md. Its functions:
--
-- FUNCTION applies one event.
--   ARGV  1  "online" or "offline"    2  seq, decimal         3  conn_id, may be empty
--         4  platform_id, "0": none   5  received_at, ms      6  command
--         7  platform                 8  operation_id         9  user_id
--        10  about how many changes the stream keeps         11  seconds until an offline user is forgotten, "0": never
--        12  ms until an online session must be renewed, "0": never
--   Returns { outcome } or, where the status changed, { outcome, status }; the outcome is "applied", "duplicate" or
--   "stale".
--
-- FUNCTION_review looks at a user whose lease is due, or all of whose settings have changed.
--   ARGV  1  ms, leases that end until then have run out      2  now, ms: when leases begin that have no beginning yet
--         9  to 12 as above
--   Returns { how many sessions have run out } or, where the status changed, { how many, status }.
--
-- FUNCTION_sent takes changes out of the outbox.
--   ARGV  1  the outbox as it was sent. Returns 1 where it was still there, else 0.
--
-- FUNCTION_reschedule, on a Cluster only, sets when a user is due again, unless that has changed.
--   KEYS  1  the leases. ARGV  1  user_id  2  when the user was due, ms  3  when next, "" for never
--
-- KEYS  1  the user's hash
--       2  the stream of changes, 3  the counters, 4  the leases: on a Redis Cluster absent, since they cannot share a
--          step with the hash. The hash then keeps the changes in its outbox, and the first two reply { ..., status or
--          "", outbox, end of the earliest lease in ms or "" } for the caller to act upon.
-- LIBRARY and FUNCTION are replaced as this file is loaded, see store.py.
--
-- Private fields of the hash, one for each scope that was ever named:
--       "c:<conn_id>", "p:<platform_id>", "u"  ->  "<on> <off> <platform_id>[ <lease>]"
--       the highest seq of an online and of an offline event for exactly this scope, "-" for none; the platform that
--       a connection belongs to; ms at which its lease began, or "x" where it ran out
--       "floor"   the highest seq of a closed connection that was forgotten
--       "outbox"  changes that are not on the stream yet, JSON, one a line
-- A session is online while its lease has not run out and its "on" is not lower than any "off" that covers it, so
-- presence does not depend on the order in which events come.

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
local EXPIRED = 'x'

-- All of one user that the rules look at: the public fields, and a record for each scope.
local function read(key)
  local flat = redis.call('HGETALL', key)
  local user, records = {}, {}
  for i = 1, #flat, 2 do
    local name, value = flat[i], flat[i + 1]
    local initial = name:sub(1, 2)
    if initial == 'c:' or initial == 'p:' or name == 'u' then
      local on, off, platform, lease = value:match('^(%S+) (%S+) (%d+) ?(%S*)$')
      records[name] = { on = on, off = off, platform = platform, lease = lease }
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
  return record.on ~= '-' and record.lease ~= EXPIRED and not higher(cover(records, scope, record), record.on)
end

-- Takes the event into the records; says what came of it, and whether the record changed.
local function take(records, floor, scope, kind, seq, platform_id, lease)
  local record = records[scope]
  if not record then
    if scope:sub(1, 2) == 'c:' and not higher(seq, floor) then return 'stale', false end
    record = { on = '-', off = '-', platform = '0', lease = '' }
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
  if seq ~= record.on then record.lease = lease end
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

-- Keeps the two bounds, noting in touched what it forgot; returns how many sessions are online, the floor, and when
-- the earliest lease began, or nil.
local function bound(records, floor, touched)
  local online, closed, earliest = {}, {}, nil
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
    if is_online(records, scope, record) then
      local began = tonumber(record.lease)
      if began and began < (earliest or math.huge) then earliest = began end
    elseif scope:sub(1, 2) == 'c:' then
      closed[#closed + 1] = { scope = scope, seq = highest(record.on, record.off) }
    end
  end
  for _, connection in ipairs(surplus(closed, CLOSED_MAX)) do
    floor = highest(floor, connection.seq)
    records[connection.scope] = nil
    touched[connection.scope] = true
  end
  return math.min(#online, ONLINE_MAX), floor, earliest
end

-- The newest event is the one with the highest seq; of two with the same, the online one.
local function is_newest(user, kind, seq)
  if seq ~= user.seq then return higher(seq, user.seq or '-') end
  return kind == 'online' and not user.command:find('Online', 1, true)
end

-- A list of field, value, field, value for HSET.
local function set(fields, name, value)
  fields[#fields + 1] = name
  fields[#fields + 1] = value
end

-- Writes what apply and review have come to, tells of a change, and says the rest of their reply.
-- change: the fields of an entry of the stream that depend on what caused it.
local function finish(keys, args, user, records, fields, touched, change, changed_at)
  local key, changes, stats, leases = keys[1], keys[2], keys[3], keys[4]
  local user_id, changes_maxlen, retention, lease_ms = args[9], args[10], args[11], tonumber(args[12])
  local sessions, floor, earliest = bound(records, user.floor or '-', touched)
  local previous = user.status or ''
  local status = sessions > 0 and 'online' or 'offline'
  local flipped = status ~= previous
  local lease_ends = lease_ms > 0 and earliest and earliest + lease_ms

  set(fields, 'sessions', sessions)
  local gone = {}
  for name in pairs(touched) do
    local record = records[name]
    if record then
      local lease = record.lease ~= '' and ' ' .. record.lease or ''
      set(fields, name, record.on .. ' ' .. record.off .. ' ' .. record.platform .. lease)
    else
      gone[#gone + 1] = name
    end
  end
  if floor ~= '-' then set(fields, 'floor', floor) end

  if flipped then
    set(fields, 'status', status)
    set(fields, 'changed_at', changed_at)
    local entry = { 'user_id', user_id, 'status', status, 'previous', previous, 'changed_at', changed_at }
    for _, value in ipairs(change) do entry[#entry + 1] = value end
    if changes then
      -- Before all else: should it be of a wrong type, nothing has been written yet.
      redis.call('XADD', changes, 'MAXLEN', '~', changes_maxlen, '*', unpack(entry))
      local difference = status == 'online' and 1 or (previous == 'online' and -1 or 0)
      if difference ~= 0 then redis.pcall('HINCRBY', stats, 'users_online', difference) end
    else
      user.outbox = (user.outbox and user.outbox .. '\n' or '') .. cjson.encode(entry)
      set(fields, 'outbox', user.outbox)
    end
  end
  redis.call('HSET', key, unpack(fields))
  if #gone > 0 then redis.call('HDEL', key, unpack(gone)) end

  if status == 'online' then
    if flipped then redis.call('PERSIST', key) end
  elseif retention ~= '0' then
    redis.call('EXPIRE', key, retention)
  end
  if leases and lease_ends then
    redis.pcall('ZADD', leases, lease_ends, user_id)
  elseif leases and lease_ms > 0 then
    redis.pcall('ZREM', leases, user_id)
  end
  return flipped and status or '', lease_ends
end

-- A reply; on a Cluster it says what the caller must do.
local function reply(keys, user, first, status, lease_ends)
  if not keys[2] then
    return { first, status, user.outbox or '', lease_ends and string.format('%d', lease_ends) or '' }
  end
  if status == '' then return { first } end
  return { first, status }
end

local function apply(keys, args)
  local kind, seq, conn_id, platform_id, received_at = args[1], args[2], args[3], args[4], args[5]
  local user, records = read(keys[1])
  local scope = scope_of(conn_id, platform_id)
  local lease = args[12] ~= '0' and received_at or ''
  local outcome, changed = take(records, user.floor or '-', scope, kind, seq, platform_id, lease)
  if not changed then
    -- On a Cluster an earlier try may have ended before the caller could note the lease.
    local earliest = not keys[2] and args[12] ~= '0' and select(3, bound(records, '-', {}))
    return reply(keys, user, outcome, '', earliest and earliest + args[12])
  end
  if platform_id == '0' then platform_id = '' end -- as readers see it

  local fields = {}
  if outcome == 'applied' then
    set(fields, 'updated_at', highest(received_at, user.updated_at or '-'))
    if is_newest(user, kind, seq) then
      set(fields, 'seq', seq)
      set(fields, 'command', args[6])
      set(fields, 'conn_id', conn_id)
      set(fields, 'platform_id', platform_id)
      set(fields, 'platform', args[7])
      set(fields, 'operation_id', args[8])
    end
  end
  local change = {
    'seq', seq, 'command', args[6], 'conn_id', conn_id, 'platform_id', platform_id, 'operation_id', args[8],
  }
  local touched = { [scope] = true }
  return reply(keys, user, outcome, finish(keys, args, user, records, fields, touched, change, received_at))
end

-- Of two leases that have run out, the one whose session is named in the change.
local function is_later(a, b)
  if not b then return true end
  if a.ends ~= b.ends then return a.ends > b.ends end
  return a.scope > b.scope
end

local function review(keys, args)
  local due, now, lease_ms = tonumber(args[1]), args[2], tonumber(args[12])
  local user, records = read(keys[1])
  if not user.status then -- forgotten, or removed by hand
    if keys[4] then redis.pcall('ZREM', keys[4], args[9]) end
    return reply(keys, user, 0, '', nil)
  end

  local touched, count, last = {}, 0, nil
  for scope, record in pairs(records) do
    if lease_ms > 0 and is_online(records, scope, record) then
      local began = tonumber(record.lease)
      if not began then
        record.lease = now
        touched[scope] = true
      elseif began + lease_ms <= due then
        record.lease = EXPIRED
        touched[scope] = true
        count = count + 1
        local session = { scope = scope, record = record, ends = began + lease_ms }
        if is_later(session, last) then last = session end
      end
    end
  end

  local conn_id, platform_id, seq, ends = '', '', user.seq, '-'
  if last then
    if last.scope:sub(1, 2) == 'c:' then conn_id = last.scope:sub(3) end
    if last.record.platform ~= '0' then platform_id = last.record.platform end
    seq, ends = last.record.on, string.format('%d', last.ends)
  end
  local change = {
    'seq', seq, 'command', 'lease_expired', 'conn_id', conn_id, 'platform_id', platform_id, 'operation_id', '',
  }
  if args[11] == '0' then redis.call('PERSIST', keys[1]) end
  -- It has ended when its lease did, but not before what was known of the user then.
  local changed_at = highest(ends, user.updated_at or '-')
  return reply(keys, user, count, finish(keys, args, user, records, {}, touched, change, changed_at))
end

local function sent(keys, args)
  local outbox, what = redis.call('HGET', keys[1], 'outbox') or '', args[1]
  if outbox == what then return redis.call('HDEL', keys[1], 'outbox') end
  if outbox:sub(1, #what + 1) ~= what .. '\n' then return 0 end -- another worker was first
  redis.call('HSET', keys[1], 'outbox', outbox:sub(#what + 2))
  return 1
end

local function reschedule(keys, args)
  local leases, user_id, was, ends = keys[1], args[1], args[2], args[3]
  if tonumber(redis.call('ZSCORE', leases, user_id) or '-1') ~= tonumber(was) then return 0 end
  if ends == '' then return redis.call('ZREM', leases, user_id) end
  return redis.call('ZADD', leases, ends, user_id)
end

redis.register_function('FUNCTION', apply)
redis.register_function('FUNCTION_review', review)
redis.register_function('FUNCTION_sent', sent)
redis.register_function('FUNCTION_reschedule', reschedule)
