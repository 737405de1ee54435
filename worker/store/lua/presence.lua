-- One user's presence, one atomic step at a time: the rules of docs/redis-keys.md. Its functions:
--
-- FUNCTION applies events of several users, or of one. Those of one user came together and are one step.
--   ARGV  1 to 5  the options, see `begin`   6  for each user a byte: how many events
--         then for each event eight values, see `read_events`
--   Returns { outcomes, readings, an error for each user whose step failed, ... }. `outcomes` has a letter for each
--   event: "a" applied, "d" duplicate, "s" stale, "e" an error; in upper case if it is the last event of a step that
--   changed the user's status; and "x", "y", "z" for the first three if it is the last of a step with a reading.
--   `readings` has one for each platform that a batch names both online and offline: "k"
--   read as online, "c" as offline.
--
-- FUNCTION_review looks at a user whose lease is due, or all of whose settings have changed.
--   ARGV  1 to 5  the options   6  ms: leases that end until then have run out
--         7  ms: when leases begin that have no beginning yet
--   Returns { how many sessions have run out, 1 if the status changed }.
--
-- FUNCTION_sent takes changes out of the outbox.
--   ARGV  1  the outbox as it was sent. Returns 1 if it was still there, else 0.
--
-- FUNCTION_reschedule, on a Cluster only, sets when a user is due again, unless that has changed.
--   KEYS  1  the leases. ARGV  1  user_id  2  when the user was due, ms  3  when next, "" for never
--
-- KEYS  the users' hashes, of which all functions but the first have one; then the stream of changes, the counters, and
--       the leases. On a Redis Cluster these three are absent, as they cannot share a step with the hash, and a call is
--       for one user. The hash then keeps the changes in its outbox, and the reply of the first two functions goes on
--       with the outbox and with the end of the earliest lease, in ms or "", for the caller to act upon.
-- FUNCTION is replaced as the files are loaded, see library.py.

-- What goes for a whole call; changed, came_online, readings: what has come of it so far.
local CALL = {}

local function begin(keys, args, users)
  call, find, sub = redis.call, string.find, string.sub
  local options = CALL
  options.changes, options.stats, options.leases = keys[users + 1], keys[users + 2], keys[users + 3]
  options.changes_maxlen = args[1]
  options.retention_seconds = args[2] -- "0": never forgotten
  options.lease_ms = tonumber(args[3]) -- 0: no leases
  options.user_id_at = tonumber(args[4]) -- where it begins in a key
  options.now = args[5] -- ms
  options.changed, options.came_online, options.readings = 0, 0, ''
  return options
end

-- Counts the changes of all users at once.
local function finish(options)
  if options.changed == 0 or not options.changes then return end
  redis.pcall('HINCRBY', options.stats, 'changes', options.changed)
  if options.came_online ~= 0 then redis.pcall('HINCRBY', options.stats, 'users_online', options.came_online) end
end

local EVENTS_AT, EVENT_ARGS = 7, 8
local EVENTS = {} -- used again for the next user
local KINDS = {} -- by the names of OpenIM's commands, as far as they have come

-- As it is in the hash.
local function kind_of(command)
  local kind = KINDS[command]
  if not kind then
    kind = command:find('KickOff', 1, true) and 'k' or command:lower():find('online', 1, true) and 'n' or 'f'
    KINDS[command] = kind
  end
  return kind
end

-- The events of one user: as many as `number` says, from that argument on.
local function read_events(args, at, number)
  local events = EVENTS
  for i = #events, number + 1, -1 do events[i] = nil end
  for i = 1, number do
    local event = events[i]
    if not event then
      event = { is_new = true }
      events[i] = event
    end
    event.command = args[at]
    event.kind = kind_of(args[at])
    event.seq = args[at + 1]
    event.conn_id = args[at + 2] -- may be empty
    event.platform_id = args[at + 3] -- "0": none
    event.platform = args[at + 4]
    event.operation_id = args[at + 5]
    event.received_at = args[at + 6] -- ms
    event.given_id = args[at + 7] -- empty if the receiver is older
    at = at + EVENT_ARGS
  end
  return events
end

local function known_platform(event)
  if event.platform_id == '0' then return '' end
  return event.platform_id
end

-- Tells of a change; the values are those of an entry of the stream, each after its name.
local function tell(options, state, ...)
  -- Before all else: should the stream be of a wrong type, nothing of this user has been written yet.
  if options.changes and options.changed == 0 then -- trims it, once in a call
    call('XADD', options.changes, 'MAXLEN', '~', options.changes_maxlen, '*', ...)
  elseif options.changes then
    call('XADD', options.changes, '*', ...)
  else
    local before = state.user.outbox and state.user.outbox .. '\n' or ''
    state.outbox = before .. cjson.encode({ ... })
    set('outbox', state.outbox)
  end
end

-- Writes what apply and review have come to, and tells of a change that `cause` has made at `changed_at`. newest: the
-- newest event, the user if that is no other now. Returns whether the status changed, and when the earliest lease ends,
-- or nil.
local function conclude(key, options, state, newest, cause, changed_at)
  local user, leases = state.user, options.leases
  begin_writing(key)
  local sessions, platforms, earliest, closed = bound(state)
  local previous = user.status or ''
  local status = sessions > 0 and 'online' or 'offline'
  local flipped = status ~= previous
  local lease_ends = options.lease_ms > 0 and earliest and earliest + options.lease_ms

  if state.updated_at and state.updated_at ~= NONE then put(user, 'updated_at', state.updated_at) end
  if newest ~= user then
    put(user, 'seq', newest.seq)
    put(user, 'command', newest.command)
    put(user, 'conn_id', newest.conn_id)
    put(user, 'platform_id', known_platform(newest))
    put(user, 'platform', newest.platform)
    put(user, 'operation_id', newest.operation_id)
  end
  put(user, 'sessions', digits(sessions))
  put(user, 'platforms', platforms)
  put_records(state)
  if state.recent[1] or state.batches then put_batches(state) end
  if state.floor then put(user, 'floor', state.floor) end
  put_tally(state, sessions, closed)

  if flipped then
    set('status', status)
    put(user, 'changed_at', changed_at)
    tell(
      options, state, 'user_id', key:sub(options.user_id_at), 'status', status, 'previous', previous,
      'changed_at', changed_at, 'seq', cause.seq, 'command', cause.command, 'conn_id', cause.conn_id,
      'platform_id', known_platform(cause), 'operation_id', cause.operation_id
    )
    options.changed = options.changed + 1
    if status == 'online' then
      options.came_online = options.came_online + 1
    elseif previous == 'online' then
      options.came_online = options.came_online - 1
    end
  end
  write()

  if status == 'online' then
    if flipped and user.status then call('PERSIST', key) end
  elseif options.retention_seconds ~= '0' then
    call('EXPIRE', key, options.retention_seconds)
  end
  if leases and lease_ends then
    redis.pcall('ZADD', leases, lease_ends, key:sub(options.user_id_at))
  elseif leases and options.lease_ms > 0 then
    redis.pcall('ZREM', leases, key:sub(options.user_id_at))
  end
  return flipped, lease_ends
end

-- What a reply says on a Cluster besides: what the caller must do.
local function on_cluster(options, state, lease_ends)
  if options.changes then return nil end
  return state.outbox or state.user.outbox or '', lease_ends and string.format('%d', lease_ends) or ''
end

-- Applying.

local function status_of(state)
  if state.rest and state.rest.online > 0 then return 'online' end
  local list = state.list
  for i = 1, #list do
    if is_online(state, list[i]) then return 'online' end
  end
  return 'offline'
end

-- Whether the event is newer than what is shown as the newest: the one with the highest seq; of two with the same, the
-- online one.
local function is_newer(event, shown)
  if event.seq ~= shown.seq then return higher(event.seq, shown.seq or NONE) end
  return event.kind == 'n' and not shown.command:find('Online', 1, true)
end

-- Takes the events in. Returns what came of each before the last one; what came of the last one; the newest event now;
-- the event that the step is put down to, nil if none was applied; and when the last one was received.
local function take_all(state, events, options)
  local user = state.user
  local before, outcome, status, cause, updated_at, newest = '', '', user.status, nil, user.updated_at or NONE, user
  for i = 1, #events do
    local event = events[i]
    if i > 1 then before = before .. outcome end
    outcome = take(state, event, options)
    if outcome == APPLIED then
      updated_at = highest(event.received_at, updated_at)
      if is_newer(event, newest) then newest = event end
      -- What the step comes to is put down to the last event that changed it.
      local was = status
      if events[2] then status = status_of(state) end
      if status ~= was or not cause then cause = event end
    end
  end
  return before, outcome, newest, cause, updated_at
end

local WITH_READING = { [APPLIED] = 'x', [DUPLICATE] = 'y', [STALE] = 'z' }

-- One user's step: the letters of its events; and on a Cluster what else is in the reply.
local function step(key, options, events)
  local size = call('HLEN', key) -- costs less than to look for a tally in vain
  local state = size >= TALLIED_FIELDS and read_part(key, events, options)
  local before, outcome, newest, cause, updated_at
  if state then before, outcome, newest, cause, updated_at = take_all(state, events, options) end
  if not state or not is_enough(state, key) then
    state = size == 0 and load(NOTHING, NOTHING, 0, 1) or read(key)
    before, outcome, newest, cause, updated_at = take_all(state, events, options)
  end
  if not state.is_changed then
    -- On a Cluster an earlier try may have ended before the caller could note the lease.
    local earliest = not options.changes and options.lease_ms > 0 and select(3, bound(state))
    return before .. outcome, on_cluster(options, state, earliest and earliest + options.lease_ms)
  end
  local read_as = readings(state)
  if read_as ~= '' then
    options.readings = options.readings .. read_as
    outcome = WITH_READING[outcome]
  end
  forget_batches(state)
  state.seq, state.updated_at = newest.seq, updated_at
  cause = cause or events[1]
  local flipped, lease_ends = conclude(key, options, state, newest, cause, cause.received_at)
  if flipped then outcome = outcome:upper() end
  return before .. outcome, on_cluster(options, state, lease_ends)
end

local function apply(keys, args)
  local numbers = args[6]
  local options = begin(keys, args, #numbers)
  if not options.changes then
    local letters, outbox, lease_ends = step(keys[1], options, read_events(args, EVENTS_AT, numbers:byte()))
    return { letters, options.readings, outbox, lease_ends }
  end
  local outcomes, reply, at = {}, { '', '' }, EVENTS_AT
  for i = 1, #numbers do
    local number = numbers:byte(i)
    local done, result = pcall(step, keys[i], options, read_events(args, at, number))
    if not done then
      reply[#reply + 1] = { err = result }
      result = ('e'):rep(number)
    end
    outcomes[i] = result
    at = at + number * EVENT_ARGS
  end
  finish(options)
  reply[1], reply[2] = table.concat(outcomes), options.readings
  return reply
end

-- Reviewing.

-- Of two leases that have run out, the one whose session is named in the change.
local function is_later(a, b)
  if not b then return true end
  if a.ends ~= b.ends then return a.ends > b.ends end
  return a.record.scope > b.record.scope
end

local function review(keys, args)
  local key, options, due, now = keys[1], begin(keys, args, 1), tonumber(args[6]), args[7]
  local state = read(key)
  local user, lease_ms = state.user, options.lease_ms
  if not user.status then -- forgotten, or removed by hand
    if options.leases then redis.pcall('ZREM', options.leases, key:sub(options.user_id_at)) end
    return { 0, 0, on_cluster(options, state, nil) }
  end

  local expired, last = 0, nil
  for _, record in ipairs(state.list) do
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
  if options.retention_seconds == '0' then call('PERSIST', key) end
  -- It has ended when its lease did, but not before what was known of the user then.
  -- Where neither is known, another program wrote the hash.
  local changed_at = highest(ends, user.updated_at or NONE)
  if changed_at == NONE then changed_at = options.now end
  local flipped, lease_ends = conclude(key, options, state, user, cause, changed_at)
  finish(options)
  return { expired, flipped and 1 or 0, on_cluster(options, state, lease_ends) }
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
