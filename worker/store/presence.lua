#!lua name=LIBRARY
-- One user's presence, one atomic step at a time: the rules of docs/redis-keys.md. Its functions:
--
-- FUNCTION applies events of one user that came together.
--   ARGV  1 to 5  the options, see `options_of`; then for each event nine values, see `event_at`
--   Returns { outcomes } or, where the status changed, { outcomes, status }. `outcomes` has a letter for each event:
--   "a" applied, "d" duplicate, "s" stale.
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
-- LIBRARY and FUNCTION are replaced as this file is loaded, see store.py.
--
-- Private fields of the hash:
--       "c:<conn_id>", "p:<platform_id>", "u"  ->  "<on> <off> <platform_id>[ <lease>]"
--       for each scope, the highest seq of an online and of an offline event, "-" for none; the platform that a
--       connection belongs to; ms at which its lease began, or "x" where it ran out
--       "b:0" to "b:3"  ->  "<seq> <events> <operation_id>"
--       the newest batches of platforms. Commas separate the events, each "<kind><platform_id>.<id>[@<seq>]": its kind is
--       "n" online, "f" offline or "k" kick-off, and its seq is left out where it is the one that the text begins with.
--       "s:<platform_id>"  ->  "<on> <off>[ <mixed>]"
--       the sum of the batches that are no longer remembered, as in "p:"; and the highest seq at which one of them said
--       offline though it named the platform both online and offline
--       "floor"   the highest seq of a closed connection that was forgotten
--       "outbox"  changes that are not on the stream yet, JSON, one a line
-- A session is online while its lease has not run out and its "on" is not lower than any "off" that covers it, so
-- presence does not depend on the order in which events come.
--
-- This runs for each user of each job, and what takes its time is making tables and strings. So the usual event, of a new
-- batch that is newer than everything known of the user, does without reading the batches that are remembered; and
-- tables name their fields when they are made (`false` for what comes later), or Lua would allocate them anew.

local CLOSED_MAX = 32 -- closed connections remembered
local ONLINE_MAX = 256 -- sessions online
local BATCHES_MAX = 4 -- batches remembered one by one
local BATCH_EVENTS_MAX = 64 -- events of one batch: OpenIM sends one for each change, and each connection, of the user
local BATCH_SPAN = 60000 -- events of one operationID are one batch while their seqs, in ms, are less than this apart

local NONE = '-' -- no seq
local EXPIRED = 'x'
local KINDS = { online = 'n', offline = 'f', kick_off = 'k' }
local APPLIED, DUPLICATE, STALE = 'a', 'd', 's'

local C, P, S = 99, 112, 115 -- the bytes; a library has no functions at hand while it is loaded
local SLOTS = { ['b:0'] = true, ['b:1'] = true, ['b:2'] = true, ['b:3'] = true }
local PUBLIC = {
  status = true, seq = true, changed_at = true, updated_at = true, command = true, conn_id = true, platform_id = true,
  platform = true, operation_id = true, sessions = true, platforms = true, floor = true, outbox = true,
}

-- Seqs go up to 2^63-1 and a Lua number is exact to 2^53 only, so they stay decimal strings without leading
-- zeros; "-" is lower than all.
local function higher(a, b)
  if a == NONE or b == NONE then return a ~= NONE end
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
  local heads = tonumber(high:sub(1, -10)) - (tonumber(low:sub(1, -10)) or 0)
  return heads * 1e9 + tonumber(high:sub(-9)) - tonumber(low:sub(-9)) < BATCH_SPAN
end

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

local function event_at(args, i)
  return {
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

-- Reading the hash.

local function platform_record(state, platform_id)
  local record = state.platforms[platform_id]
  if not record then
    record = {
      scope = 'p:' .. platform_id, platform = platform_id, lease = '', on = NONE, off = NONE, sum_on = NONE,
      sum_off = NONE, mixed = NONE, was_on = NONE, was_off = NONE, before_on = NONE, before_off = NONE,
      text = false, is_connection = false, is_changed = false,
    }
    state.platforms[platform_id] = record
    state.records[record.scope] = record
    state.platform_list[#state.platform_list + 1] = record
  end
  return record
end

-- A batch has its events in a list, each { kind, platform_id, id, seq }. One of a single event, as most are, is left as
-- text with the event's kind and platform beside it, until somebody needs more.
local function new_batch(slot, text, seq, kind, platform_id)
  return { slot = slot, text = text, low = seq, high = seq, kind = kind, platform_id = platform_id }
end

local function operation_of(batch)
  if not batch.operation_id then batch.operation_id = batch.text:match('^%d+ %S+ (.*)$') end
  return batch.operation_id
end

local function events_of(batch)
  if batch.events then return batch.events end
  local events = {}
  local first, items = batch.text:match('^(%d+) (%S+)')
  for kind, platform_id, id, seq in items:gmatch('(%a)(%d+)%.(%w*)@?(%d*)') do
    if seq == '' then seq = first end
    events[#events + 1] = { kind = kind, platform_id = platform_id, id = id, seq = seq }
    batch.low, batch.high = lowest(batch.low or seq, seq), highest(batch.high or seq, seq)
  end
  batch.low, batch.high = batch.low or first, batch.high or first
  batch.events = events
  return events
end

local function text_of(batch)
  if batch.kind then return batch.text end
  local seq, items = batch.events[1].seq, {}
  for i, event in ipairs(batch.events) do
    items[i] = event.kind .. event.platform_id .. '.' .. event.id .. (event.seq ~= seq and '@' .. event.seq or '')
  end
  return seq .. ' ' .. table.concat(items, ',') .. ' ' .. operation_of(batch)
end

-- A user's batches come in the order of their highest seqs.
local function is_earlier(a, b)
  if a.high ~= b.high then return higher(b.high, a.high) end
  return operation_of(a) < operation_of(b)
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

-- All of one user that the rules look at: the public fields; a record for each scope, those of platforms by their ids as
-- well; and the slots of the batches, which `load_batches` reads.
local function read(key)
  local user = {
    status = false, seq = false, changed_at = false, updated_at = false, command = false, conn_id = false,
    platform_id = false, platform = false, operation_id = false, sessions = false, platforms = false, floor = false,
    ['b:0'] = false, ['b:1'] = false, ['b:2'] = false, ['b:3'] = false,
  }
  local slots = {}
  local state = {
    user = user, records = {}, platforms = {}, platform_list = {}, slots = slots, batches = false, newest = false,
    user_off = NONE, is_changed = false, forgotten = false, freed = false, floor = false, outbox = false,
  }
  local flat = redis.call('HGETALL', key)
  for i = 1, #flat, 2 do
    local name, value = flat[i], flat[i + 1]
    if PUBLIC[name] then
      user[name] = value
    elseif SLOTS[name] then
      user[name] = value
      slots[#slots + 1] = name
    else
      local first = name:byte()
      if first == S then
        local record = platform_record(state, name:sub(3))
        local on, off, mixed = value:match('^(%S+) (%S+) ?(%S*)$')
        record.sum_on, record.sum_off, record.mixed = on, off, mixed ~= '' and mixed or NONE
      elseif first == P or first == C or name == 'u' then
        local on, off, platform, lease = value:match('^(%S+) (%S+) (%d+) ?(%S*)$')
        if first == P then
          local record = platform_record(state, platform)
          record.on, record.off, record.lease, record.text = on, off, lease, value
        else
          state.records[name] = {
            scope = name, on = on, off = off, platform = platform, lease = lease, is_connection = first == C,
            is_changed = false,
          }
          if first ~= C then state.user_off = off end
        end
      end
    end
  end
  if not slots[1] then -- written by a release that knew no batches
    for _, record in ipairs(state.platform_list) do
      record.sum_on, record.sum_off, record.is_changed = record.on, record.off, true
    end
  end
  return state
end

-- Sessions.

local function is_open(state, record, on, off)
  if on == NONE or record.lease == EXPIRED or higher(off, on) or higher(state.user_off, on) then return false end
  if record.is_connection and record.platform ~= '0' then
    local of_platform = state.platforms[record.platform]
    return not (of_platform and higher(of_platform.off, on))
  end
  return true
end

local function is_online(state, record)
  return is_open(state, record, record.on, record.off)
end

-- Batches: what they say of platforms, and what platforms are by them.

-- Whether the platform is online by the batches so far, whatever its lease.
local function was_online(state, platform_id)
  local record = state.platforms[platform_id]
  if not record or record.on == NONE then return false end
  return not higher(record.off, record.on) and not higher(state.user_off, record.on)
end

-- What a batch of several events has for each platform that it names, in a list.
local function tally(events)
  local counts, by_platform = {}, {}
  for _, event in ipairs(events) do
    local count = by_platform[event.platform_id]
    if not count then
      count = { platform_id = event.platform_id, online = 0, offline = 0, kicks = 0, seq = event.seq }
      by_platform[event.platform_id] = count
      counts[#counts + 1] = count
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

-- Whether the batch, of which this is one platform's count, changes nothing of any other platform.
local function changes_nothing_else(state, counts, count)
  for _, other in ipairs(counts) do
    if other ~= count and (other.offline > 0 or not was_online(state, other.platform_id)) then return false end
  end
  return true
end

local function says_online(state, counts, count)
  if count.offline == 0 then return true end
  if count.online == 0 then return false end
  if count.kicks == count.offline or count.online > count.offline then return true end
  return count.online == count.offline
    and was_online(state, count.platform_id)
    and changes_nothing_else(state, counts, count)
end

-- What the batch says of each platform that it names, after all batches before it have spoken.
local function judge(state, batch)
  local counts = tally(events_of(batch))
  for _, count in ipairs(counts) do -- all of them before any is said: they look at what was before the batch
    count.says_online = says_online(state, counts, count)
  end
  return counts
end

local function say(record, is_online_said, seq)
  if is_online_said then
    record.on = highest(record.on, seq)
  else
    record.off = highest(record.off, seq)
  end
end

local function take_batch(state, batch)
  if batch.kind then
    return say(platform_record(state, batch.platform_id), batch.kind == 'n', batch.low)
  end
  batch.verdicts = judge(state, batch)
  for _, verdict in ipairs(batch.verdicts) do
    say(platform_record(state, verdict.platform_id), verdict.says_online, verdict.seq)
  end
end

-- Gives the platforms what the sum and the batches say.
local function settle(state)
  for _, record in ipairs(state.platform_list) do
    record.on, record.off = record.sum_on, record.sum_off
  end
  for _, batch in ipairs(state.batches) do
    take_batch(state, batch)
  end
end

-- Reads the batches that are remembered.
local function load_batches(state)
  if state.batches then return end
  local batches = { state.newest or nil }
  state.batches, state.newest = batches, false
  for _, slot in ipairs(state.slots) do
    local text = state.user[slot]
    local seq, kind, platform_id = text:match('^(%d+) (%a)(%d+)%.%w* ')
    local batch = new_batch(slot, text, seq, kind, platform_id)
    if not kind then events_of(batch) end
    batches[#batches + 1] = batch
  end
  sort_batches(batches)
  settle(state)
end

local function sum_up(record, is_online_said, seq, is_new, is_mixed)
  record.is_changed = true
  if not is_online_said then
    record.sum_off = highest(record.sum_off, seq)
    if is_mixed then record.mixed = highest(record.mixed, seq) end
  elseif not (is_new and seq == record.mixed) then
    -- Else it is a part of a batch that said offline, delivered once more after that was summed up.
    record.sum_on = highest(record.sum_on, seq)
  end
end

local function free(state, slot)
  state.freed = state.freed or {}
  state.freed[#state.freed + 1] = slot
end

-- Of the slots, all in use, the one of the earliest batch, and its seq, kind and platform; nil where it takes more than
-- a look to say which that is, or what it says.
local function earliest_slot(state)
  local earliest, earliest_seq, is_tie
  for _, slot in ipairs(state.slots) do
    local seq = state.user[slot]:match('^(%d+) %a%d+%.%w* ')
    if not seq then return nil end
    if not earliest or higher(earliest_seq, seq) then
      earliest, earliest_seq, is_tie = slot, seq, false
    elseif seq == earliest_seq then
      is_tie = true
    end
  end
  if is_tie then return nil end
  return earliest, state.user[earliest]:match('^(%d+) (%a)(%d+)')
end

-- Only the newest batches are remembered from now on, and what the others have said is added up.
local function forget_batches(state)
  if state.newest then
    if #state.slots < BATCHES_MAX then return end
    local slot, seq, kind, platform_id = earliest_slot(state)
    if slot then
      sum_up(state.platforms[platform_id], kind == 'n', seq, false, false)
      return free(state, slot)
    end
    load_batches(state)
  end
  if not state.batches then return end
  local has_new = false
  while #state.batches > BATCHES_MAX do
    local batch = table.remove(state.batches, 1)
    if batch.kind then
      sum_up(state.platforms[batch.platform_id], batch.kind == 'n', batch.low, batch.is_new, false)
    else
      for _, verdict in ipairs(batch.verdicts) do
        local is_mixed = verdict.online > 0 and verdict.offline > 0
        sum_up(state.platforms[verdict.platform_id], verdict.says_online, verdict.seq, batch.is_new, is_mixed)
      end
    end
    if batch.slot then free(state, batch.slot) end
    has_new = has_new or batch.is_new
  end
  if has_new then settle(state) end
end

local function has_lower_seq(a, b)
  return higher(b.seq, a.seq)
end

-- Divides events of one operationID into batches anew, from the lowest seq up.
local function divide(state, batches, events)
  local operation_id = operation_of(batches[1])
  table.sort(events, has_lower_seq)
  local part, parts = nil, 0
  for _, event in ipairs(events) do
    if not part or #part.events == BATCH_EVENTS_MAX or not is_near(part.low, event.seq) then
      parts = parts + 1
      part = batches[parts]
      if not part then
        part = { operation_id = operation_id, is_new = true }
        state.batches[#state.batches + 1] = part
      end
      part.events, part.low, part.is_changed, part.kind = {}, event.seq, true, false
    end
    part.events[#part.events + 1] = event
    part.high = event.seq
  end
end

local function is_same(a, b)
  return a.id == b.id and a.seq == b.seq and a.kind == b.kind and a.platform_id == b.platform_id
end

-- The remembered batches of this operationID, or nil where there are none.
local function batches_of(state, operation_id)
  local found
  for _, batch in ipairs(state.batches) do
    if operation_of(batch) == operation_id then
      found = found or {}
      found[#found + 1] = batch
    end
  end
  return found
end

local function names_slot(state, operation_id)
  local ending = ' ' .. operation_id
  for _, slot in ipairs(state.slots) do
    if state.user[slot]:find(ending, -#ending, true) then return true end
  end
  return false
end

local function fits(batch, seq)
  return #events_of(batch) < BATCH_EVENTS_MAX and is_near(lowest(batch.low, seq), highest(batch.high, seq))
end

local function add_event(batch, item)
  local events = events_of(batch)
  events[#events + 1] = item
  batch.low, batch.high = lowest(batch.low, item.seq), highest(batch.high, item.seq)
  operation_of(batch) -- which its text says
  batch.kind, batch.is_changed = false, true
end

local function batch_of(item, operation_id)
  local text = item.seq .. ' ' .. item.kind .. item.platform_id .. '.' .. item.id .. ' ' .. operation_id
  local batch = new_batch(false, text, item.seq, item.kind, item.platform_id)
  batch.is_new = true
  return batch
end

-- Lets an event begin a batch that is newer than everything known of the user: all others have spoken.
local function begin_newest(state, item, operation_id)
  for _, record in ipairs(state.platform_list) do
    record.before_on, record.before_off = record.on, record.off
  end
  state.newest = batch_of(item, operation_id)
  take_batch(state, state.newest)
  return true
end

-- Puts a further event into that batch; false where it is there already.
local function join_newest(state, item)
  for _, known in ipairs(events_of(state.newest)) do
    if is_same(known, item) then return false end
  end
  add_event(state.newest, item)
  for _, record in ipairs(state.platform_list) do
    record.on, record.off = record.before_on, record.before_off
  end
  take_batch(state, state.newest)
  return true
end

-- Puts an event wherever it belongs among the batches; false where it is there already.
local function insert(state, item, operation_id)
  load_batches(state)
  local batches, events = batches_of(state, operation_id), { item }
  for _, batch in ipairs(batches or {}) do
    for _, known in ipairs(events_of(batch)) do
      if is_same(known, item) then return false end
      events[#events + 1] = known
    end
  end
  if not batches or operation_id == '' then
    state.batches[#state.batches + 1] = batch_of(item, operation_id)
  elseif batches[2] or not fits(batches[1], item.seq) then
    divide(state, batches, events)
  else
    add_event(batches[1], item)
  end
  sort_batches(state.batches)
  settle(state)
  return true
end

-- Puts an event of a platform into its batch, and gives the platforms what the batches say then; false where the event
-- is there already.
local function remember(state, event)
  local operation_id, newest, id = event.operation_id, state.newest, ''
  if operation_id ~= '' then -- else events of one kind and seq are one
    -- Within a batch eight characters tell events apart; where a receiver is too old to give them, the time does.
    id = (event.id ~= '' and event.id or event.received_at):match('%w*$'):sub(-8)
  end
  local item = { kind = event.kind, platform_id = event.platform_id, id = id, seq = event.seq }
  if newest then
    if operation_id ~= '' and operation_of(newest) == operation_id and fits(newest, item.seq) then
      return join_newest(state, item)
    end
  elseif not state.batches and higher(item.seq, state.user.seq or NONE) and not names_slot(state, operation_id) then
    return begin_newest(state, item, operation_id)
  end
  return insert(state, item, operation_id)
end

-- Taking one event in. Each of these says what came of it. lease: when a lease begins that it renews, or "".

local function take_platform(state, event, lease)
  for _, record in ipairs(state.platform_list) do
    record.was_on, record.was_off = record.on, record.off
  end
  if not remember(state, event) then return DUPLICATE end
  state.is_changed = true
  local outcome = STALE
  for _, record in ipairs(state.platform_list) do
    if record.off ~= record.was_off then outcome = APPLIED end
    if record.on ~= record.was_on then
      local was_open = is_open(state, record, record.was_on, record.was_off)
      if higher(record.on, record.was_on) and (event.kind == 'n' or record.lease == '' or record.lease == EXPIRED) then
        record.lease = lease
      end
      if was_open or is_online(state, record) then outcome = APPLIED end
    end
  end
  if outcome == STALE then
    local record = state.platforms[event.platform_id]
    if event.seq == (event.kind == 'n' and record.on or record.off) then return DUPLICATE end
  end
  return outcome
end

-- An event for a connection, or for the user as a whole.
local function take_plain(state, event, lease)
  local scope, seq = event.conn_id ~= '' and 'c:' .. event.conn_id or 'u', event.seq
  local record = state.records[scope]
  if not record then
    if scope ~= 'u' and not higher(seq, state.user.floor or NONE) then return STALE end
    record = { scope = scope, on = NONE, off = NONE, platform = '0', lease = '', is_connection = scope ~= 'u', is_changed = false }
    state.records[scope] = record
  end

  if event.kind ~= 'n' then
    if seq == record.off then return DUPLICATE end
    if higher(record.off, seq) then return STALE end
    record.off, record.is_changed, state.is_changed = seq, true, true
    if scope == 'u' then
      state.user_off = seq
      if state.slots[1] or state.newest then -- batches look at what was online before them
        load_batches(state)
        settle(state)
      end
    end
    return APPLIED
  end

  -- Of two online events of one connection with one seq, the higher platform counts, whichever came first.
  if seq == record.on and tonumber(event.platform_id) <= tonumber(record.platform) then return DUPLICATE end
  if higher(record.on, seq) then return STALE end
  local was_open = is_online(state, record)
  if seq ~= record.on then record.lease = lease end
  record.on, record.platform, record.is_changed, state.is_changed = seq, event.platform_id, true, true
  if was_open or is_online(state, record) then return APPLIED end
  -- Covered, and yet remembered: an older event that names another platform must not open the connection.
  return STALE
end

-- An online event that was received longer ago than users are remembered, of a user who is not remembered, or only
-- because of events that old: nothing would ever close what it opens.
local function is_too_old(state, event, options)
  if options.retention_seconds == '0' or event.kind ~= 'n' or state.user.status == 'online' then return false end
  local forgotten = tonumber(options.now) - tonumber(options.retention_seconds) * 1000
  return tonumber(event.received_at) < forgotten and tonumber(state.user.updated_at or '0') < forgotten
end

local function take(state, event, options)
  if is_too_old(state, event, options) then return STALE end
  local lease = options.lease_ms > 0 and event.received_at or ''
  if event.conn_id == '' and event.platform_id ~= '0' then return take_platform(state, event, lease) end
  return take_plain(state, event, lease)
end

-- Bounds.

local function lowest_first(a, b)
  if a.seq ~= b.seq then return higher(b.seq, a.seq) end
  return a.record.scope < b.record.scope
end

-- Forgets that a session was opened.
local function forget_session(state, record)
  if state.platforms[record.platform] == record then
    load_batches(state)
    for i = #state.batches, 1, -1 do
      local batch = state.batches[i]
      local events = events_of(batch)
      for j = #events, 1, -1 do
        if events[j].platform_id == record.platform then
          table.remove(events, j)
          batch.is_changed = true
        end
      end
      if #events == 0 then
        table.remove(state.batches, i)
        if batch.slot then free(state, batch.slot) end
      end
    end
    record.sum_on, record.sum_off, record.is_changed = NONE, record.off, true
  end
  record.on, record.is_changed = NONE, true
end

-- Calls forget(record) for those of the records, lowest seq first, that are too many.
local function keep(state, records, most, forget)
  table.sort(records, lowest_first)
  for i = 1, #records - most do
    forget(state, records[i].record, records[i].seq)
  end
end

local function forget_connection(state, record, seq)
  state.floor = highest(state.floor or state.user.floor or NONE, seq)
  state.records[record.scope] = nil
  state.forgotten = state.forgotten or {}
  state.forgotten[#state.forgotten + 1] = record.scope
end

local function sessions_of(state, wants_online)
  local found = {}
  for _, record in pairs(state.records) do
    if is_online(state, record) then
      if wants_online then found[#found + 1] = { record = record, seq = record.on } end
    elseif record.is_connection and not wants_online then
      found[#found + 1] = { record = record, seq = highest(record.on, record.off) }
    end
  end
  return found
end

local function count(state)
  local online, closed, platforms, earliest = 0, 0, '', nil
  for _, record in pairs(state.records) do
    if is_online(state, record) then
      online = online + 1
      local began = record.lease ~= '' and tonumber(record.lease)
      if began and (not earliest or began < earliest) then earliest = began end
      if platforms == '' then
        platforms = record.platform
      elseif platforms ~= record.platform then
        platforms = nil -- several: to be listed
      end
    elseif record.is_connection then
      closed = closed + 1
    end
  end
  return online, closed, platforms, earliest
end

-- The ids of the platforms that are online, ascending.
local function list_platforms(state)
  local ids, seen = {}, {}
  for _, record in pairs(state.records) do
    local id = record.platform
    if id ~= '0' and not seen[id] and is_online(state, record) then
      seen[id] = true
      ids[#ids + 1] = tonumber(id)
    end
  end
  table.sort(ids)
  return table.concat(ids, ',')
end

-- Keeps the bounds; returns how many sessions are online, the ids of their platforms, and when the earliest lease
-- began, or nil.
local function bound(state)
  local online, closed, platforms, earliest = count(state)
  if online > ONLINE_MAX then
    keep(state, sessions_of(state, true), ONLINE_MAX, forget_session)
    online, closed, platforms, earliest = count(state)
  end
  if closed > CLOSED_MAX then keep(state, sessions_of(state, false), CLOSED_MAX, forget_connection) end
  if not platforms then
    platforms = list_platforms(state)
  elseif platforms == '0' then
    platforms = ''
  end
  return online, platforms, earliest
end

-- Writing the hash. to_set: fields and values for HSET, only those that are not so already.

local function put(user, to_set, name, value)
  if user[name] ~= value then
    local last = #to_set
    to_set[last + 1] = name
    to_set[last + 2] = value
  end
end

local function with_lease(record, on, off)
  if record.lease == '' then return on .. ' ' .. off .. ' ' .. record.platform end
  return on .. ' ' .. off .. ' ' .. record.platform .. ' ' .. record.lease
end

local function put_records(state, to_set, gone)
  local user = state.user
  local has_batches = state.slots[1] or state.newest or state.batches
  for scope, record in pairs(state.records) do
    if state.platforms[record.platform] == record then
      local text = with_lease(record, record.on, record.off)
      if text ~= record.text then put(user, to_set, scope, text) end
      if has_batches and record.is_changed then
        local mixed = record.mixed ~= NONE and ' ' .. record.mixed or ''
        put(user, to_set, 's:' .. record.platform, record.sum_on .. ' ' .. record.sum_off .. mixed)
      end
    elseif record.is_changed then
      if record.on == NONE and record.off == NONE then
        gone[#gone + 1] = scope
      else
        put(user, to_set, scope, with_lease(record, record.on, record.off))
      end
    end
  end
  if state.forgotten then
    for _, scope in ipairs(state.forgotten) do gone[#gone + 1] = scope end
  end
end

local function free_slot(user)
  for i = 0, BATCHES_MAX - 1 do
    if not user['b:' .. i] then return 'b:' .. i end
  end
end

local function put_batches(state, to_set, gone)
  local user, freed = state.user, state.freed
  for _, batch in ipairs(state.batches or { state.newest }) do
    if not batch.slot then
      batch.slot = freed and table.remove(freed) or free_slot(user)
      user[batch.slot] = ''
    end
    if batch.is_changed or batch.is_new then put(user, to_set, batch.slot, text_of(batch)) end
  end
  if freed then
    for _, name in ipairs(freed) do gone[#gone + 1] = name end
  end
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
  local sessions, platforms, earliest = bound(state)
  local previous = user.status or ''
  local status = sessions > 0 and 'online' or 'offline'
  local flipped = status ~= previous
  local lease_ends = options.lease_ms > 0 and earliest and earliest + options.lease_ms

  put(user, to_set, 'sessions', tostring(sessions))
  put(user, to_set, 'platforms', platforms)
  put_records(state, to_set, gone)
  if state.newest or state.batches then put_batches(state, to_set, gone) end
  if state.floor then put(user, to_set, 'floor', state.floor) end

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

local function apply(keys, args)
  local options, state = options_of(args), read(keys[1])
  local user = state.user
  local outcomes, status, cause, updated_at = '', user.status, nil, user.updated_at or NONE
  local newest = user
  for i = EVENTS_AT, #args, EVENT_ARGS do
    local event = event_at(args, i)
    local outcome = take(state, event, options)
    outcomes = outcomes .. outcome
    if outcome == APPLIED then
      updated_at = highest(event.received_at, updated_at)
      if is_newer(event, newest) then newest = event end
      -- What the step comes to is put down to the last event that changed it.
      local before = status
      if args[EVENTS_AT + EVENT_ARGS] then status = status_of(state) end
      if status ~= before or not cause then cause = event end
    end
  end
  if not state.is_changed then
    -- On a Cluster an earlier try may have ended before the caller could note the lease.
    local earliest = not keys[2] and options.lease_ms > 0 and select(3, bound(state))
    return reply(keys, state, outcomes, '', earliest and earliest + options.lease_ms)
  end
  forget_batches(state)

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
  cause = cause or event_at(args, EVENTS_AT)
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
