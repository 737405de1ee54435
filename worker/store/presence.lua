#!lua name=LIBRARY
-- One user's presence, one atomic step at a time: the rules of docs/redis-keys.md. Its functions:
--
-- FUNCTION applies events of one user that came together.
--   ARGV  1 to 4  the options, see `options`; then for each event nine values, see `event_at`.
--   Returns { outcomes } or, where the status changed, { outcomes, status }. `outcomes` has a letter for each event:
--   "a" applied, "d" duplicate, "s" stale.
--
-- FUNCTION_review looks at a user whose lease is due, or all of whose settings have changed.
--   ARGV  1 to 4  the options   5  leases that end until then have run out, ms
--         6  now, ms: when leases begin that have no beginning yet
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
-- LIBRARY and FUNCTION are replaced as this file is loaded, see store.py.
--
-- Private fields of the hash:
--       "c:<conn_id>", "p:<platform_id>", "u"  ->  "<on> <off> <platform_id>[ <lease>]"
--       for each scope, the highest seq of an online and of an offline event, "-" for none; the platform that a
--       connection belongs to; ms at which its lease began, or "x" where it ran out. A platform's seqs are the sum of
--       the batches that are no longer remembered one by one.
--       "b0" to "b3"  ->  "<seq> <events> <operation_id>"
--       the newest batches. The events are separated by commas, each "<kind><platform_id>.<id>[@<seq>]": its kind is
--       "n" online, "f" offline or "k" kick-off, and its own seq is left out where it is the batch's first.
--       "m:<platform_id>"  the highest seq at which a batch that is summed up said offline though it named both
--       "floor"   the highest seq of a closed connection that was forgotten
--       "outbox"  changes that are not on the stream yet, JSON, one a line
-- A session is online while its lease has not run out and its "on" is not lower than any "off" that covers it, so
-- presence does not depend on the order in which events come.

local CLOSED_MAX = 32 -- closed connections remembered
local ONLINE_MAX = 256 -- sessions online
local BATCHES_MAX = 4 -- batches remembered one by one
local BATCH_EVENTS_MAX = 64 -- events of one batch: OpenIM's have one for each change and connection of the user
local BATCH_SPAN = 60000 -- events of one operationID are one batch while their seqs, in ms, are less than this apart

local EXPIRED = 'x'
local NEVER = { on = '-', off = '-' }
local KIND_LETTERS = { online = 'n', offline = 'f', kick_off = 'k' }
local COLON, B, C, P, M = 58, 98, 99, 112, 109

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

local function lowest(a, b)
  if higher(a, b) then return b end
  return a
end

-- Whether the seq `high` is less than BATCH_SPAN above `low`.
local function is_near(low, high)
  if low == high then return true end
  if #high < 16 then return tonumber(high) - tonumber(low) < BATCH_SPAN end
  local high_head, low_head = tonumber(high:sub(1, -10)), tonumber(low:sub(1, -10)) or 0
  return (high_head - low_head) * 1e9 + (tonumber(high:sub(-9)) - tonumber(low:sub(-9))) < BATCH_SPAN
end

-- Arguments, by name.

local function options(args)
  return { user_id = args[1], changes_maxlen = args[2], retention_seconds = args[3], lease_ms = tonumber(args[4]) }
end

local EVENTS_AT, EVENT_ARGS = 5, 9

local function event_at(args, i)
  local conn_id, platform_id = args[i + 2], args[i + 3]
  local scope = 'u'
  if conn_id ~= '' then
    scope = 'c:' .. conn_id
  elseif platform_id ~= '0' then
    scope = 'p:' .. platform_id
  end
  return {
    kind = args[i], -- "online", "offline" or "kick_off"
    seq = args[i + 1],
    conn_id = conn_id, -- may be empty
    platform_id = platform_id, -- "0": none
    received_at = args[i + 4], -- ms
    command = args[i + 5],
    platform = args[i + 6],
    operation_id = args[i + 7],
    id = args[i + 8], -- empty where the receiver is older
    scope = scope,
  }
end

-- Reading the hash.

local function platform_record(state, platform_id)
  local scope = 'p:' .. platform_id
  local record = state.records[scope]
  if not record then
    record = { on = '-', off = '-', platform = platform_id, lease = '', sum_on = '-', sum_off = '-', mixed = '-' }
    state.records[scope] = record
    state.platforms[#state.platforms + 1] = record
  end
  return record
end

local function note_seq(batch, seq)
  if batch.low == nil or higher(batch.low, seq) then batch.low = seq end
  if batch.high == nil or higher(seq, batch.high) then batch.high = seq end
end

local function read_batch(slot, text)
  local seq, kind, platform_id, id, operation_id = text:match('^(%d+) (%a)(%d+)%.(%w*) (.*)$')
  if seq then -- one event, as nearly all batches have
    local event = { kind = kind, platform_id = platform_id, id = id, seq = seq }
    return { slot = slot, operation_id = operation_id, events = { event }, low = seq, high = seq }
  end
  local batch, events = { slot = slot, events = {} }, nil
  seq, events, batch.operation_id = text:match('^(%d+) (%S+) (.*)$')
  for letter, platform, name, own_seq in events:gmatch('(%a)(%d+)%.(%w*)@?(%d*)') do
    if own_seq == '' then own_seq = seq end
    batch.events[#batch.events + 1] = { kind = letter, platform_id = platform, id = name, seq = own_seq }
    note_seq(batch, own_seq)
  end
  return batch
end

local function write_batch(batch)
  local seq, events = batch.events[1].seq, {}
  for i, event in ipairs(batch.events) do
    local own_seq = event.seq ~= seq and '@' .. event.seq or ''
    events[i] = event.kind .. event.platform_id .. '.' .. event.id .. own_seq
  end
  return seq .. ' ' .. table.concat(events, ',') .. ' ' .. batch.operation_id
end

-- A user's batches come in the order of their highest seqs.
local function is_earlier(a, b)
  if a.high ~= b.high then return higher(b.high, a.high) end
  return a.operation_id < b.operation_id
end

local function sort_batches(batches)
  for i = 2, #batches do
    local j = i
    while j > 1 and is_earlier(batches[j], batches[j - 1]) do
      batches[j], batches[j - 1] = batches[j - 1], batches[j]
      j = j - 1
    end
  end
end

-- All of one user that the rules look at: the public fields, a record for each scope, the batches. Records of platforms
-- are also in a list of their own; `settle` gives them what the batches say.
local function read(key)
  local flat = redis.call('HGETALL', key)
  local state = { key = key, user = {}, records = {}, platforms = {}, batches = {}, slots = {} }
  for i = 1, #flat, 2 do
    local name, value = flat[i], flat[i + 1]
    local first, second = name:byte(1, 2)
    if second == COLON and (first == C or first == P) or name == 'u' then
      local on, off, platform, lease = value:match('^(%S+) (%S+) (%d+) ?(%S*)$')
      if first == P then
        local record = platform_record(state, name:sub(3))
        record.sum_on, record.sum_off, record.lease, record.text = on, off, lease, value
      else
        state.records[name] = { on = on, off = off, platform = platform, lease = lease }
      end
    elseif first == B then
      state.batches[#state.batches + 1] = read_batch(name, value)
      state.slots[#state.slots + 1] = name
    elseif second == COLON and first == M then
      local record = platform_record(state, name:sub(3))
      record.mixed, record.mixed_text = value, value
    else
      state.user[name] = value
    end
  end
  sort_batches(state.batches)
  return state
end

-- Sessions.

-- The highest offline seq that covers the session of this scope.
local function cover(records, scope, record)
  local off = highest(record.off, (records['u'] or NEVER).off)
  if record.platform ~= '0' and scope:byte(1) == C then
    off = highest(off, (records['p:' .. record.platform] or NEVER).off)
  end
  return off
end

local function is_online(records, scope, record)
  return record.on ~= '-' and record.lease ~= EXPIRED and not higher(cover(records, scope, record), record.on)
end

-- Batches: what they say of platforms, and what platforms are by them.

local function say(record, kind, seq)
  if kind == 'n' then
    record.on = highest(record.on, seq)
  else
    record.off = highest(record.off, seq)
  end
end

-- Whether the platform is online by the batches so far, whatever its lease.
local function was_online(state, platform_id)
  local record = state.records['p:' .. platform_id]
  if not record or record.on == '-' then return false end
  return not higher(highest(record.off, (state.records['u'] or NEVER).off), record.on)
end

-- How often a batch names each platform: { [platform_id] = { online, offline, kicks among these, highest seq } }.
local function tally(batch)
  local counts = {}
  for _, event in ipairs(batch.events) do
    local count = counts[event.platform_id]
    if not count then
      count = { online = 0, offline = 0, kicks = 0, seq = event.seq }
      counts[event.platform_id] = count
    end
    if event.kind == 'n' then
      count.online = count.online + 1
    else
      count.offline = count.offline + 1
      if event.kind == 'k' then count.kicks = count.kicks + 1 end
    end
    count.seq = highest(event.seq, count.seq)
  end
  return counts
end

local function changes_nothing_else(state, counts, platform_id)
  for other, count in pairs(counts) do
    if other ~= platform_id and (count.offline > 0 or not was_online(state, other)) then return false end
  end
  return true
end

local function says_online(state, counts, platform_id)
  local count = counts[platform_id]
  if count.offline == 0 then return true end
  if count.online == 0 then return false end
  if count.kicks == count.offline or count.online > count.offline then return true end
  return count.online == count.offline
    and was_online(state, platform_id)
    and changes_nothing_else(state, counts, platform_id)
end

-- Lets the batch speak, after all that come before it. is_sum: it is not remembered from now on.
local function take_batch(state, batch, is_sum)
  local first = batch.events[1]
  if not batch.events[2] then
    local record = platform_record(state, first.platform_id)
    -- Part of a batch that said offline, delivered once more after that was summed up, does not open the platform.
    if not (is_sum and batch.is_new and first.kind == 'n' and first.seq == record.mixed) then
      say(record, first.kind, first.seq)
    end
    return
  end
  local counts, verdicts = tally(batch), {}
  for platform_id in pairs(counts) do -- all of them before any is said: they look at what was before the batch
    verdicts[platform_id] = says_online(state, counts, platform_id)
  end
  for platform_id, count in pairs(counts) do
    local record = platform_record(state, platform_id)
    if not verdicts[platform_id] then
      if is_sum and count.online > 0 then record.mixed = highest(record.mixed, count.seq) end
      say(record, 'f', count.seq)
    elseif not (is_sum and batch.is_new and count.seq == record.mixed) then
      say(record, 'n', count.seq)
    end
  end
end

-- Gives the platforms' records what the sum and the batches say. sums_up: only the newest are remembered from now on.
local function settle(state, sums_up)
  local batches, platforms = state.batches, state.platforms
  local surplus = sums_up and #batches - BATCHES_MAX or 0
  for _, record in ipairs(platforms) do
    record.was_on, record.was_off = record.on, record.off
    record.on, record.off = record.sum_on, record.sum_off
  end
  for i, batch in ipairs(batches) do
    take_batch(state, batch, i <= surplus)
    if i == surplus then
      for _, record in ipairs(platforms) do
        record.sum_on, record.sum_off = record.on, record.off
      end
    end
  end
  for _ = 1, surplus do
    table.remove(batches, 1)
  end
end

local function has_lower_seq(a, b)
  return higher(b.seq, a.seq)
end

local function add_batch(state, batch)
  state.batches[#state.batches + 1] = batch
  return batch
end

-- Divides events of one operationID into batches anew, from the lowest seq up.
local function divide(state, batches, events)
  table.sort(events, has_lower_seq)
  local part, parts = nil, 0
  for _, event in ipairs(events) do
    if not part or #part.events == BATCH_EVENTS_MAX or not is_near(part.low, event.seq) then
      parts = parts + 1
      part = batches[parts] or add_batch(state, { operation_id = batches[1].operation_id, is_new = true })
      part.events, part.low, part.is_changed = {}, event.seq, true
    end
    part.events[#part.events + 1] = event
    part.high = event.seq
  end
end

local function is_same(a, b)
  return a.id == b.id and a.seq == b.seq and a.kind == b.kind and a.platform_id == b.platform_id
end

-- Puts an event of a platform into its batch; false where it is there already.
local function remember(state, event)
  local has_name = event.operation_id ~= ''
  local item = { kind = KIND_LETTERS[event.kind], platform_id = event.platform_id, seq = event.seq, id = '' }
  if has_name then -- else those of one kind and seq are one
    -- Within a batch eight characters tell events apart, and where a receiver is too old to give them, the time.
    item.id = (event.id ~= '' and event.id or event.received_at):match('%w*$'):sub(-8)
  end
  local batches, events = {}, { item }
  for _, batch in ipairs(state.batches) do
    if batch.operation_id == event.operation_id then
      batches[#batches + 1] = batch
      for _, known in ipairs(batch.events) do
        if is_same(known, item) then return false end
        events[#events + 1] = known
      end
    end
  end

  local batch = batches[1]
  if not batch or not has_name then
    batch = { operation_id = event.operation_id, events = { item }, low = item.seq, high = item.seq }
    batch.is_new, batch.is_changed = true, true
    add_batch(state, batch)
  elseif
    batches[2]
    or #events > BATCH_EVENTS_MAX
    or not is_near(lowest(batch.low, item.seq), highest(batch.high, item.seq))
  then
    divide(state, batches, events)
  else
    batch.events[#batch.events + 1] = item
    batch.is_changed = true
    batch.low, batch.high = lowest(batch.low, item.seq), highest(batch.high, item.seq)
  end
  sort_batches(state.batches)
  return true
end

-- Taking one event in. Each of the three says what came of it.

local APPLIED, DUPLICATE, STALE = 'a', 'd', 's'

local function take_platform(state, event, lease)
  local is_new = remember(state, event)
  if not is_new then return DUPLICATE end
  state.is_changed = true
  settle(state, false)
  local outcome = STALE
  for _, record in ipairs(state.platforms) do
    local scope = 'p:' .. record.platform
    if record.off ~= (record.was_off or '-') then outcome = APPLIED end
    if record.on ~= (record.was_on or '-') then
      local lost = { on = record.was_on or '-', off = record.was_off or '-', platform = '0', lease = record.lease }
      if higher(record.on, lost.on) and (event.kind == 'online' or record.lease == '' or record.lease == EXPIRED) then
        record.lease = lease
      end
      if is_online(state.records, scope, record) or is_online(state.records, scope, lost) then outcome = APPLIED end
    end
  end
  local record = state.records[event.scope]
  if outcome == STALE and event.seq == (event.kind == 'online' and record.on or record.off) then return DUPLICATE end
  return outcome
end

-- An event for a connection, or for the user as a whole.
local function take_plain(state, event, lease)
  local records, scope, seq = state.records, event.scope, event.seq
  local record = records[scope]
  if not record then
    if scope ~= 'u' and not higher(seq, state.user.floor or '-') then return STALE end
    record = { on = '-', off = '-', platform = '0', lease = '' }
    records[scope] = record
  end

  if event.kind ~= 'online' then
    if seq == record.off then return DUPLICATE end
    if higher(record.off, seq) then return STALE end
    record.off, record.is_changed, state.is_changed = seq, true, true
    if scope == 'u' then settle(state, false) end -- batches look at what was online before them
    return APPLIED
  end

  -- Of two online events of one connection with one seq, the higher platform counts, whichever came first.
  if seq == record.on and tonumber(event.platform_id) <= tonumber(record.platform) then return DUPLICATE end
  if higher(record.on, seq) then return STALE end
  local was_open = is_online(records, scope, record)
  if seq ~= record.on then record.lease = lease end
  record.on, record.platform, record.is_changed, state.is_changed = seq, event.platform_id, true, true
  if was_open or is_online(records, scope, record) then return APPLIED end
  -- Covered, and yet remembered: an older event that names another platform must not open the connection.
  return STALE
end

-- An online event that was received longer ago than users are remembered, of a user who is not remembered, or only
-- because of events that old: nothing would ever close what it opens.
local function is_too_old(state, event, retention_seconds)
  if retention_seconds == '0' or event.kind ~= 'online' then return false end
  local user = state.user
  if user.status == 'online' then return false end
  local forgotten = (tonumber(redis.call('TIME')[1]) - tonumber(retention_seconds)) * 1000
  return tonumber(event.received_at) < forgotten and tonumber(user.updated_at or '0') < forgotten
end

-- Bounds.

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

-- Forgets that a session was opened.
local function forget_session(state, scope)
  local record = state.records[scope]
  if scope:byte(1) == P then
    for i = #state.batches, 1, -1 do
      local batch = state.batches[i]
      for j = #batch.events, 1, -1 do
        if batch.events[j].platform_id == record.platform then table.remove(batch.events, j) end
      end
      batch.is_changed = true
      if #batch.events == 0 then table.remove(state.batches, i) end
    end
    record.sum_on, record.sum_off = '-', record.off
  end
  record.on, record.is_changed = '-', true
end

-- Keeps the bounds; returns how many sessions are online, the ids of their platforms, the floor, and when the earliest
-- lease began, or nil.
local function bound(state)
  local records, floor = state.records, state.user.floor or '-'
  local online, closed, platforms, seen, earliest = {}, {}, {}, {}, nil
  for scope, record in pairs(records) do
    if is_online(records, scope, record) then online[#online + 1] = { scope = scope, seq = record.on } end
  end
  for _, session in ipairs(surplus(online, ONLINE_MAX)) do
    forget_session(state, session.scope)
  end
  for scope, record in pairs(records) do
    if is_online(records, scope, record) then
      local began = tonumber(record.lease)
      if began and began < (earliest or math.huge) then earliest = began end
      if record.platform ~= '0' and not seen[record.platform] then
        seen[record.platform] = true
        platforms[#platforms + 1] = tonumber(record.platform)
      end
    elseif scope:byte(1) == C then
      closed[#closed + 1] = { scope = scope, seq = highest(record.on, record.off) }
    end
  end
  for _, connection in ipairs(surplus(closed, CLOSED_MAX)) do
    floor = highest(floor, connection.seq)
    records[connection.scope] = nil
    state.forgotten = state.forgotten or {}
    state.forgotten[#state.forgotten + 1] = connection.scope
  end
  table.sort(platforms)
  return math.min(#online, ONLINE_MAX), table.concat(platforms, ','), floor, earliest
end

-- Writing the hash.

local Fields = {}
Fields.__index = Fields

-- What is to be written to a user's hash: fields for HSET, where they are not so already, and those for HDEL.
local function new_fields(user)
  return setmetatable({ user = user, set = {}, gone = {} }, Fields)
end

function Fields:put(name, value)
  if self.user[name] ~= value then
    self.set[#self.set + 1] = name
    self.set[#self.set + 1] = value
  end
end

function Fields:remove(name)
  self.gone[#self.gone + 1] = name
end

function Fields:write(key)
  if #self.set > 0 then redis.call('HSET', key, unpack(self.set)) end
  if #self.gone > 0 then redis.call('HDEL', key, unpack(self.gone)) end
end

local function record_text(on, off, record)
  return on .. ' ' .. off .. ' ' .. record.platform .. (record.lease ~= '' and ' ' .. record.lease or '')
end

local function put_records(fields, state)
  for scope, record in pairs(state.records) do
    if scope:byte(1) == P then
      local text = record_text(record.sum_on, record.sum_off, record)
      local is_blank = record.sum_on == '-' and record.sum_off == '-' and record.lease == ''
      if text ~= record.text and not (is_blank and not record.text) then fields:put(scope, text) end
      if record.mixed ~= (record.mixed_text or '-') then fields:put('m:' .. record.platform, record.mixed) end
    elseif record.is_changed then
      if record.on == '-' and record.off == '-' then
        fields:remove(scope)
      else
        fields:put(scope, record_text(record.on, record.off, record))
      end
    end
  end
  for _, scope in ipairs(state.forgotten or {}) do fields:remove(scope) end
end

local function put_batches(fields, state)
  local used = {}
  for _, batch in ipairs(state.batches) do
    if batch.slot then used[batch.slot] = true end
  end
  local slot = 0
  for _, batch in ipairs(state.batches) do
    if batch.is_changed then
      while not batch.slot do
        local name = 'b' .. slot
        slot = slot + 1
        if not used[name] then batch.slot, used[name] = name, true end
      end
      fields:put(batch.slot, write_batch(batch))
    end
  end
  for _, name in ipairs(state.slots) do
    if not used[name] then fields:remove(name) end
  end
end

-- Writes what apply and review have come to, and tells of a change. change: the fields of an entry of the stream that
-- depend on what caused it. Returns the new status or "", and when the earliest lease ends, or nil.
local function finish(keys, option, state, fields, change, changed_at)
  local changes, stats, leases = keys[2], keys[3], keys[4]
  local user, user_id = state.user, option.user_id
  local sessions, platforms, floor, earliest = bound(state)
  local previous = user.status or ''
  local status = sessions > 0 and 'online' or 'offline'
  local flipped = status ~= previous
  local lease_ends = option.lease_ms > 0 and earliest and earliest + option.lease_ms

  fields:put('sessions', tostring(sessions))
  fields:put('platforms', platforms)
  put_records(fields, state)
  put_batches(fields, state)
  if floor ~= '-' then fields:put('floor', floor) end

  if flipped then
    fields:put('status', status)
    fields:put('changed_at', changed_at)
    local entry = { 'user_id', user_id, 'status', status, 'previous', previous, 'changed_at', changed_at }
    for _, value in ipairs(change) do entry[#entry + 1] = value end
    if changes then
      -- Before all else: should it be of a wrong type, nothing has been written yet.
      redis.call('XADD', changes, 'MAXLEN', '~', option.changes_maxlen, '*', unpack(entry))
      redis.pcall('HINCRBY', stats, 'changes', 1)
      local difference = status == 'online' and 1 or (previous == 'online' and -1 or 0)
      if difference ~= 0 then redis.pcall('HINCRBY', stats, 'users_online', difference) end
    else
      user.outbox = (user.outbox and user.outbox .. '\n' or '') .. cjson.encode(entry)
      fields.set[#fields.set + 1] = 'outbox'
      fields.set[#fields.set + 1] = user.outbox
    end
  end
  fields:write(keys[1])

  if status == 'online' then
    if flipped then redis.call('PERSIST', keys[1]) end
  elseif option.retention_seconds ~= '0' then
    redis.call('EXPIRE', keys[1], option.retention_seconds)
  end
  if leases and lease_ends then
    redis.pcall('ZADD', leases, lease_ends, user_id)
  elseif leases and option.lease_ms > 0 then
    redis.pcall('ZREM', leases, user_id)
  end
  return flipped and status or '', lease_ends
end

-- A reply; on a Cluster it says what the caller must do.
local function reply(keys, state, first, status, lease_ends)
  if not keys[2] then
    return { first, status, state.user.outbox or '', lease_ends and string.format('%d', lease_ends) or '' }
  end
  if status == '' then return { first } end
  return { first, status }
end

-- Applying.

-- Whether the event is newer than what the hash shows as the newest: the one with the highest seq; of two with the
-- same, the online one.
local function is_newest(user, event)
  if event.seq ~= user.seq then return higher(event.seq, user.seq or '-') end
  return event.kind == 'online' and not user.command:find('Online', 1, true)
end

local function status_of(state)
  for scope, record in pairs(state.records) do
    if is_online(state.records, scope, record) then return 'online' end
  end
  return 'offline'
end

local function apply(keys, args)
  local option = options(args)
  local state = read(keys[1])
  settle(state, false)
  local outcomes, status, cause = {}, state.user.status, nil
  local newest = { seq = state.user.seq, command = state.user.command }
  local updated_at = state.user.updated_at or '-'
  for i = EVENTS_AT, #args, EVENT_ARGS do
    local event = event_at(args, i)
    local lease = option.lease_ms > 0 and event.received_at or ''
    local outcome
    if is_too_old(state, event, option.retention_seconds) then
      outcome = STALE
    elseif event.scope:byte(1) == P then
      outcome = take_platform(state, event, lease)
    else
      outcome = take_plain(state, event, lease)
    end
    outcomes[#outcomes + 1] = outcome
    if outcome == APPLIED then
      updated_at = highest(event.received_at, updated_at)
      if is_newest(newest, event) then newest = event end
      -- What the step comes to is put down to the last event that changed it.
      local before = status
      status = status_of(state)
      if status ~= before or not cause then cause = event end
    end
  end
  outcomes = table.concat(outcomes)
  if not state.is_changed then
    -- On a Cluster an earlier try may have ended before the caller could note the lease.
    local earliest = not keys[2] and option.lease_ms > 0 and select(4, bound(state))
    return reply(keys, state, outcomes, '', earliest and earliest + option.lease_ms)
  end
  if #state.batches > BATCHES_MAX then settle(state, true) end

  local fields = new_fields(state.user)
  if cause then
    fields:put('updated_at', updated_at)
    if newest.scope then -- one of these events, and not what the hash has
      fields:put('seq', newest.seq)
      fields:put('command', newest.command)
      fields:put('conn_id', newest.conn_id)
      fields:put('platform_id', newest.platform_id == '0' and '' or newest.platform_id)
      fields:put('platform', newest.platform)
      fields:put('operation_id', newest.operation_id)
    end
  end
  cause = cause or event_at(args, EVENTS_AT)
  local change = {
    'seq', cause.seq, 'command', cause.command, 'conn_id', cause.conn_id,
    'platform_id', cause.platform_id == '0' and '' or cause.platform_id, 'operation_id', cause.operation_id,
  }
  return reply(keys, state, outcomes, finish(keys, option, state, fields, change, cause.received_at))
end

-- Reviewing.

-- Of two leases that have run out, the one whose session is named in the change.
local function is_later(a, b)
  if not b then return true end
  if a.ends ~= b.ends then return a.ends > b.ends end
  return a.scope > b.scope
end

local function review(keys, args)
  local option, due, now = options(args), tonumber(args[5]), args[6]
  local lease_ms = option.lease_ms
  local state = read(keys[1])
  local user = state.user
  if not user.status then -- forgotten, or removed by hand
    if keys[4] then redis.pcall('ZREM', keys[4], option.user_id) end
    return reply(keys, state, 0, '', nil)
  end
  settle(state, false)

  local count, last = 0, nil
  for scope, record in pairs(state.records) do
    if lease_ms > 0 and is_online(state.records, scope, record) then
      local began = tonumber(record.lease)
      if not began then
        record.lease, record.is_changed = now, true
      elseif began + lease_ms <= due then
        record.lease, record.is_changed = EXPIRED, true
        count = count + 1
        local session = { scope = scope, record = record, ends = began + lease_ms }
        if is_later(session, last) then last = session end
      end
    end
  end

  local conn_id, platform_id, seq, ends = '', '', user.seq, '-'
  if last then
    if last.scope:byte(1) == C then conn_id = last.scope:sub(3) end
    if last.record.platform ~= '0' then platform_id = last.record.platform end
    seq, ends = last.record.on, string.format('%d', last.ends)
  end
  local change = {
    'seq', seq, 'command', 'lease_expired', 'conn_id', conn_id, 'platform_id', platform_id, 'operation_id', '',
  }
  if option.retention_seconds == '0' then redis.call('PERSIST', keys[1]) end
  -- It has ended when its lease did, but not before what was known of the user then.
  local changed_at = highest(ends, user.updated_at or '-')
  return reply(keys, state, count, finish(keys, option, state, new_fields(user), change, changed_at))
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
