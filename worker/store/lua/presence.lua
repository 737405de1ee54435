-- One user's presence, one atomic step at a time: the rules of docs/redis-keys.md. Its functions:
--
-- FUNCTION applies events of one user that came together.
--   ARGV  1 to 5  the options, see `options_of`; then for each event nine values, see `events_in`
--   Returns { outcomes } or, where the status changed, { outcomes, status }. `outcomes` has a letter for each event:
--   "a" applied, "d" duplicate, "s" stale; then one for each platform that a batch names both online and offline:
--   "k" read as online, "c" as offline.
--
-- FUNCTION_review looks at a user whose lease is due, or all of whose settings have changed.
--   ARGV  1 to 5  the options   6  ms: leases that end until then have run out
--         7  ms: when leases begin that have no beginning yet
--   Returns { how many sessions have run out } or, where the status changed, { how many, status }.
--
-- FUNCTION_sent takes changes out of the outbox.
--   ARGV  1  the outbox as it was sent. Returns 1 where it was still there, else 0.
--
-- FUNCTION_reschedule, on a Cluster only, sets when a user is due again, unless that has changed.
--   KEYS  1  the leases. ARGV  1  user_id  2  when the user was due, ms  3  when next, "" for never
--
-- KEYS  1  the user's hash
--       2  the stream of changes, 3  the counters, 4  the leases: absent on a Redis Cluster, where they cannot share a
--          step with the hash. The hash then keeps the changes in its outbox, and the first two functions reply
--          { ..., status or "", outbox, end of the earliest lease in ms or "" } for the caller to act upon.
-- FUNCTION is replaced as the files are loaded, see library.py.

local KINDS = { online = 'n', offline = 'f', kick_off = 'k' } -- as in the hash

-- Arguments, by name.

local function options_of(args)
  return {
    user_id = args[1],
    changes_maxlen = args[2],
    retention_seconds = args[3], -- "0": never forgotten
    lease_ms = tonumber(args[4]), -- 0: no leases
    now = args[5], -- ms
  }
end

local EVENTS_AT, EVENT_ARGS = 6, 9

local function events_in(args)
  local events = {}
  for i = EVENTS_AT, #args, EVENT_ARGS do
    events[#events + 1] = {
      kind = KINDS[args[i]],
      seq = args[i + 1],
      conn_id = args[i + 2], -- may be empty
      platform_id = args[i + 3], -- "0": none
      received_at = args[i + 4], -- ms
      command = args[i + 5],
      platform = args[i + 6],
      operation_id = args[i + 7],
      id = args[i + 8], -- empty where the receiver is older
    }
  end
  return events
end

local function known_platform(event)
  if event.platform_id == '0' then return '' end
  return event.platform_id
end

-- Writes what apply and review have come to, and tells of a change that `cause` has made at `changed_at`. Returns the
-- new status or "", and when the earliest lease ends, or nil.
local function finish(keys, options, state, to_set, cause, changed_at)
  local key, changes, stats, leases = keys[1], keys[2], keys[3], keys[4]
  local user, gone = state.user, {}
  local sessions, platforms, earliest, closed = bound(state)
  local previous = user.status or ''
  local status = sessions > 0 and 'online' or 'offline'
  local flipped = status ~= previous
  local lease_ends = options.lease_ms > 0 and earliest and earliest + options.lease_ms

  put(user, to_set, 'sessions', tostring(sessions))
  put(user, to_set, 'platforms', platforms)
  put_records(state, to_set, gone)
  if state.recent[1] or state.batches then put_batches(state, to_set, gone) end
  if state.floor then put(user, to_set, 'floor', state.floor) end
  put_tally(state, to_set, gone, sessions, closed)

  if flipped then
    put(user, to_set, 'status', status)
    put(user, to_set, 'changed_at', changed_at)
    local entry = {
      'user_id', options.user_id, 'status', status, 'previous', previous, 'changed_at', changed_at, 'seq', cause.seq,
      'command', cause.command, 'conn_id', cause.conn_id, 'platform_id', known_platform(cause),
      'operation_id', cause.operation_id,
    }
    if changes then
      -- Before all else: should it be of a wrong type, nothing has been written yet.
      redis.call('XADD', changes, 'MAXLEN', '~', options.changes_maxlen, '*', unpack(entry))
      redis.pcall('HINCRBY', stats, 'changes', 1)
      local difference = status == 'online' and 1 or (previous == 'online' and -1 or 0)
      if difference ~= 0 then redis.pcall('HINCRBY', stats, 'users_online', difference) end
    else
      local before = user.outbox and user.outbox .. '\n' or ''
      state.outbox = before .. cjson.encode(entry)
      put(user, to_set, 'outbox', state.outbox)
    end
  end
  if to_set[1] then redis.call('HSET', key, unpack(to_set)) end
  if gone[1] then redis.call('HDEL', key, unpack(gone)) end

  if status == 'online' then
    if flipped then redis.call('PERSIST', key) end
  elseif options.retention_seconds ~= '0' then
    redis.call('EXPIRE', key, options.retention_seconds)
  end
  if leases and lease_ends then
    redis.pcall('ZADD', leases, lease_ends, options.user_id)
  elseif leases and options.lease_ms > 0 then
    redis.pcall('ZREM', leases, options.user_id)
  end
  return flipped and status or '', lease_ends
end

-- A reply; on a Cluster it says what the caller must do.
local function reply(keys, state, first, status, lease_ends)
  if not keys[2] then
    local outbox = state.outbox or state.user.outbox or ''
    return { first, status, outbox, lease_ends and string.format('%d', lease_ends) or '' }
  end
  if status == '' then return { first } end
  return { first, status }
end

-- Applying.

local function status_of(state)
  if state.rest and state.rest.online > 0 then return 'online' end
  for _, record in pairs(state.records) do
    if is_online(state, record) then return 'online' end
  end
  return 'offline'
end

-- Whether the event is newer than what is shown as the newest: the one with the highest seq; of two with the same, the
-- online one.
local function is_newer(event, shown)
  if event.seq ~= shown.seq then return higher(event.seq, shown.seq or NONE) end
  return event.kind == 'n' and not shown.command:find('Online', 1, true)
end

-- Takes the events in. Returns what came of each; the newest event now; the event that the step is put down to, nil where
-- none was applied; and when the last one was received.
local function take_all(state, events, options)
  local user = state.user
  local outcomes, status, cause, updated_at, newest = '', user.status, nil, user.updated_at or NONE, user
  for _, event in ipairs(events) do
    local outcome = take(state, event, options)
    outcomes = outcomes .. outcome
    if outcome == APPLIED then
      updated_at = highest(event.received_at, updated_at)
      if is_newer(event, newest) then newest = event end
      -- What the step comes to is put down to the last event that changed it.
      local before = status
      if events[2] then status = status_of(state) end
      if status ~= before or not cause then cause = event end
    end
  end
  return outcomes, newest, cause, updated_at
end

local function apply(keys, args)
  local options, events = options_of(args), events_in(args)
  local state, outcomes, newest, cause, updated_at = read_part(keys[1], events, options), nil, nil, nil, nil
  if state then outcomes, newest, cause, updated_at = take_all(state, events, options) end
  if not state or not is_enough(state, keys[1]) then
    state = read(keys[1])
    outcomes, newest, cause, updated_at = take_all(state, events, options)
  end
  local user = state.user
  if not state.is_changed then
    -- On a Cluster an earlier try may have ended before the caller could note the lease.
    local earliest = not keys[2] and options.lease_ms > 0 and select(3, bound(state))
    return reply(keys, state, outcomes, '', earliest and earliest + options.lease_ms)
  end
  outcomes = outcomes .. readings(state)
  forget_batches(state)
  state.seq, state.updated_at = newest.seq, updated_at

  local to_set
  if newest ~= user then
    to_set = {
      'updated_at', updated_at, 'seq', newest.seq, 'command', newest.command, 'conn_id', newest.conn_id,
      'platform_id', known_platform(newest), 'platform', newest.platform, 'operation_id', newest.operation_id,
    }
  elseif cause then
    to_set = { 'updated_at', updated_at }
  else
    to_set = {}
  end
  cause = cause or events[1]
  return reply(keys, state, outcomes, finish(keys, options, state, to_set, cause, cause.received_at))
end

-- Reviewing.

-- Of two leases that have run out, the one whose session is named in the change.
local function is_later(a, b)
  if not b then return true end
  if a.ends ~= b.ends then return a.ends > b.ends end
  return a.record.scope > b.record.scope
end

local function review(keys, args)
  local options, due, now = options_of(args), tonumber(args[6]), args[7]
  local state = read(keys[1])
  local user, lease_ms = state.user, options.lease_ms
  if not user.status then -- forgotten, or removed by hand
    if keys[4] then redis.pcall('ZREM', keys[4], options.user_id) end
    return reply(keys, state, 0, '', nil)
  end

  local expired, last = 0, nil
  for _, record in pairs(state.records) do
    if lease_ms > 0 and is_online(state, record) then
      local began = tonumber(record.lease)
      if not began then
        record.lease, record.is_changed = now, true
      elseif began + lease_ms <= due then
        record.lease, record.is_changed = EXPIRED, true
        expired = expired + 1
        local session = { record = record, ends = began + lease_ms }
        if is_later(session, last) then last = session end
      end
    end
  end

  local cause = { seq = user.seq, command = 'lease_expired', conn_id = '', platform_id = '0', operation_id = '' }
  local ends = NONE
  if last then
    if last.record.is_connection then cause.conn_id = last.record.scope:sub(3) end
    cause.seq, cause.platform_id, ends = last.record.on, last.record.platform, string.format('%d', last.ends)
  end
  if options.retention_seconds == '0' then redis.call('PERSIST', keys[1]) end
  -- It has ended when its lease did, but not before what was known of the user then.
  local changed_at = highest(ends, user.updated_at or NONE)
  return reply(keys, state, expired, finish(keys, options, state, {}, cause, changed_at))
end

local function sent(keys, args)
  local key, what = keys[1], args[1]
  local outbox = redis.call('HGET', key, 'outbox') or ''
  if outbox == what then return redis.call('HDEL', key, 'outbox') end
  if outbox:sub(1, #what + 1) ~= what .. '\n' then return 0 end -- another worker was first
  redis.call('HSET', key, 'outbox', outbox:sub(#what + 2))
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
