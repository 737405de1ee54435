-- The user's hash: read into tables, and written back.
--
-- Private fields of the hash, which shared/why/memory.py reads as well:
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
--       and those of tally.lua
--
-- What takes a call its time is making tables and strings. So tables name their fields when they are made (`false` for
-- what comes later), or Lua would allocate them anew; and the batches are read only where they are needed.

local EXPIRED = 'x'
local RECORD = '^(%S+) (%S+) (%d+) ?(%S*)$'
local C, P, S, T = 99, 112, 115, 116 -- the bytes; a library has no functions at hand while it is loaded
local SLOT_NAMES = { 'b:0', 'b:1', 'b:2', 'b:3' }
local SLOTS = { ['b:0'] = true, ['b:1'] = true, ['b:2'] = true, ['b:3'] = true }
local PUBLIC = {
  status = true, seq = true, changed_at = true, updated_at = true, command = true, conn_id = true, platform_id = true,
  platform = true, operation_id = true, sessions = true, platforms = true, floor = true, outbox = true,
}

local function platform_record(state, platform_id)
  local record = state.platforms[platform_id]
  if not record then
    record = {
      scope = 'p:' .. platform_id, platform = platform_id, lease = '', on = NONE, off = NONE, sum_on = NONE,
      sum_off = NONE, mixed = NONE, was_on = NONE, was_off = NONE, before_on = NONE, before_off = NONE,
      text = false, is_connection = false, is_sum_changed = false,
    }
    state.platforms[platform_id] = record
    state.records[record.scope] = record
    state.platform_list[#state.platform_list + 1] = record
  end
  return record
end

-- The record of a connection, or of the user as a whole.
local function new_record(state, scope, on, off, platform_id, lease)
  local record = {
    scope = scope, platform = platform_id, lease = lease, on = on, off = off, is_connection = scope ~= 'u',
    is_changed = false,
  }
  state.records[scope] = record
  return record
end

-- Whether a connection is closed by what it says itself, whatever else covers it.
local function is_closed_by_itself(on, off, lease)
  return on == NONE or lease == EXPIRED or higher(off, on)
end

-- Of closed connections, as most are, only the seq is kept; `connection_record` makes a record of one.
local function load_connection(state, scope, text)
  local on, off, platform_id, lease = text:match(RECORD)
  if not is_closed_by_itself(on, off, lease) then return new_record(state, scope, on, off, platform_id, lease) end
  state.closed[scope], state.closed_number = highest(on, off), state.closed_number + 1
  state.user[scope] = text
end

-- The record of a connection that is remembered, else nil.
local function connection_record(state, scope)
  if not state.closed[scope] then return state.records[scope] end
  state.closed[scope], state.closed_number = nil, state.closed_number - 1
  return new_record(state, scope, state.user[scope]:match(RECORD))
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

-- What the rules look at of one user: the public fields; a record for each scope, those of platforms by their ids as well,
-- and the seqs of connections that are closed; the slots of the batches, which `load_batches` reads. rest: of what was not
-- read, see tally.lua; else false.
local function new_state()
  return {
    user = {
      status = false, seq = false, changed_at = false, updated_at = false, command = false, conn_id = false,
      platform_id = false, platform = false, operation_id = false, sessions = false, platforms = false, floor = false,
      ['b:0'] = false, ['b:1'] = false, ['b:2'] = false, ['b:3'] = false,
    },
    records = {}, platforms = {}, platform_list = {}, closed = {}, closed_number = 0, slots = {}, batches = false,
    recent = {}, rest = false, tallied = false, user_off = NONE, is_changed = false, forgotten = false, freed = false,
    floor = false, outbox = false, seq = false, updated_at = false,
  }
end

-- flat: fields and their values, as HGETALL lists them.
local function load(flat)
  local state = new_state()
  local user, slots = state.user, state.slots
  for i = 1, #flat, 2 do
    local name, value = flat[i], flat[i + 1]
    if PUBLIC[name] then
      user[name] = value
    elseif SLOTS[name] then
      user[name] = value
      slots[#slots + 1] = name
    else
      local first = name:byte()
      if first == C then
        load_connection(state, name, value)
      elseif first == S then
        local record = platform_record(state, name:sub(3))
        local on, off, mixed = value:match('^(%S+) (%S+) ?(%S*)$')
        record.sum_on, record.sum_off, record.mixed = on, off, mixed ~= '' and mixed or NONE
      elseif first == P then
        local on, off, platform_id, lease = value:match(RECORD)
        local record = platform_record(state, platform_id)
        record.on, record.off, record.lease, record.text = on, off, lease, value
      elseif name == 'u' then
        state.user_off = new_record(state, name, value:match(RECORD)).off
      elseif first == T then
        user[name] = value
        state.tallied = state.tallied or {}
        state.tallied[#state.tallied + 1] = name
      end
    end
  end
  if not slots[1] then -- written by a release that knew no batches
    for _, record in ipairs(state.platform_list) do
      record.sum_on, record.sum_off, record.is_sum_changed = record.on, record.off, true
    end
  end
  return state
end

local function read(key)
  return load(redis.call('HGETALL', key))
end

-- Writing. to_set: fields and values for HSET, only those that are not so already.

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
  local has_batches = state.slots[1] or state.recent[1] or state.batches
  for scope, record in pairs(state.records) do
    if state.platforms[record.platform] == record then
      local text = with_lease(record, record.on, record.off)
      if text ~= record.text then put(user, to_set, scope, text) end
      if has_batches and record.is_sum_changed then
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
  for _, slot in ipairs(SLOT_NAMES) do
    if not user[slot] then return slot end
  end
end

local function put_batches(state, to_set, gone)
  local user, freed = state.user, state.freed
  for _, batch in ipairs(state.batches or state.recent) do
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
