-- The user's hash: read into tables, and written back.
--
-- Private fields of the hash, which shared/memory.py reads as well:
--       "c:<conn_id>", "p:<platform_id>", "u"  ->  "<on> <off> <platform_id>[ <lease>]"
--       for each scope, the highest seq of an online and of an offline event, "-" for none; the platform that a
--       connection belongs to; ms at which its lease began, or "x" if it ran out
--       "b:0" to "b:3"  ->  "<seq> <events> <operation_id>"
--       the newest batches of platforms. Commas separate the events, each "<kind><platform_id>.<id>[@<seq>]": its kind
--       is "n" online, "f" offline or "k" kick-off, and its seq is left out if it is the one that the text begins with.
--       An id "x<number>" stands for so many events that are only counted, with the highest of their seqs.
--       "s:<platform_id>"  ->  "<on> <off>[ <mixed>]"
--       the sum of the batches that are no longer remembered, as in "p:"; and the highest seq at which one of them said
--       offline though it named the platform both online and offline
--       "floor"   the highest seq of a closed connection that was forgotten
--       "outbox"  changes that are not on the stream yet, JSON, one a line
--       and those of tally.lua
--
-- What takes a call its time is making tables and strings. So the tables for one user are used again for the next one:
-- there is one state, and pools of what it holds. The batches are read only if they are needed. Next come calls of
-- functions: each step that every event takes counts in its loops instead of calling ipairs.

local EXPIRED = 'x'
local RECORD = '^(%S+) (%S+) (%d+) ?(%S*)$'
local C, P, S, T, X = 99, 112, 115, 116, 120 -- the bytes; a library has no functions at hand while it is loaded
local SLOT_NAMES = { 'b:0', 'b:1', 'b:2', 'b:3' }
local call, find, sub -- redis.call, string.find and string.sub, which are not at hand either; see `begin`

-- A table of the pool that nothing uses yet. Whoever takes it sets all its fields.
local function from(pool)
  local used = pool.used + 1
  pool.used = used
  local one = pool[used]
  if not one then
    one = {}
    pool[used] = one
  end
  return one
end

local function clear(list)
  for i = #list, 1, -1 do list[i] = nil end
end

-- What the rules look at of one user: the public fields; a record for each scope, in a list, those of platforms also by
-- their ids and all others by their scopes; the seqs and texts of connections that are closed; the slots of the
-- batches, which `load_batches` reads. rest: of what was not read, see tally.lua; else false.
local STATE = {
  user = {}, list = {}, platform_list = {}, platforms = {}, records = {}, closed = {}, closed_texts = {}, slots = {},
  recent = {}, freed = {}, forgotten = {},
}
local PLATFORMS, RECORDS, BATCHES = { used = 0 }, { used = 0 }, { used = 0 }

local function new_state()
  local state = STATE
  local user, list = state.user, state.list
  user.status, user.seq, user.changed_at, user.updated_at, user.command = false, false, false, false, false
  user.conn_id, user.platform_id, user.platform, user.operation_id = false, false, false, false
  user.sessions, user.platforms, user.floor, user.outbox = false, false, false, false
  user['b:0'], user['b:1'], user['b:2'], user['b:3'] = false, false, false, false
  for i = #list, 1, -1 do
    local record = list[i]
    list[i] = nil
    if record.is_platform then
      state.platforms[record.platform] = nil
    else
      state.records[record.scope] = nil
    end
  end
  if state.closed_number ~= 0 then state.closed, state.closed_texts, state.closed_number = {}, {}, 0 end
  clear(state.platform_list)
  clear(state.recent)
  if state.slots[1] then clear(state.slots) end
  if state.freed[1] then clear(state.freed) end
  if state.forgotten[1] then clear(state.forgotten) end
  PLATFORMS.used, RECORDS.used, BATCHES.used = 0, 0, 0
  state.batches, state.rest, state.tallied, state.user_off, state.is_changed = false, false, false, NONE, false
  state.floor, state.outbox, state.seq, state.updated_at = false, false, false, false
  return state
end

local function platform_record(state, platform_id)
  local record = state.platforms[platform_id]
  if not record then
    record = from(PLATFORMS)
    record.scope, record.platform, record.lease, record.text = 'p:' .. platform_id, platform_id, '', false
    record.on, record.off, record.sum_on, record.sum_off, record.mixed = NONE, NONE, NONE, NONE, NONE
    record.was_on, record.was_off, record.before_on, record.before_off = NONE, NONE, NONE, NONE
    record.is_platform, record.is_connection, record.is_sum_changed = true, false, false
    state.platforms[platform_id] = record
    state.list[#state.list + 1] = record
    state.platform_list[#state.platform_list + 1] = record
  end
  return record
end

-- The record of a connection, or of the user as a whole.
local function new_record(state, scope, on, off, platform_id, lease)
  local record = from(RECORDS)
  record.scope, record.platform, record.lease, record.on, record.off = scope, platform_id, lease, on, off
  record.is_platform, record.is_connection, record.is_changed = false, scope ~= 'u', false
  state.records[scope] = record
  state.list[#state.list + 1] = record
  return record
end

-- Whether a connection is closed by what it says itself, whatever else covers it.
local function is_closed_by_itself(on, off, lease)
  return on == NONE or lease == EXPIRED or higher(off, on)
end

-- Of closed connections, as most are, only seq and text are kept; `connection_record` makes a record of one.
local function load_connection(state, scope, text)
  local on, off, platform_id, lease = text:match(RECORD)
  if not is_closed_by_itself(on, off, lease) then return new_record(state, scope, on, off, platform_id, lease) end
  state.closed[scope], state.closed_texts[scope] = highest(on, off), text
  state.closed_number = state.closed_number + 1
end

-- Takes a connection out of those that are closed; returns its text.
local function take_closed(state, scope)
  local text = state.closed_texts[scope]
  state.closed[scope], state.closed_texts[scope], state.closed_number = nil, nil, state.closed_number - 1
  return text
end

-- The record of a connection that is remembered, else nil.
local function connection_record(state, scope)
  if not state.closed[scope] then return state.records[scope] end
  return new_record(state, scope, take_closed(state, scope):match(RECORD))
end

-- A batch has its events in a list, each { kind, platform_id, id, seq }, or with a number in place of the id if they are
-- only counted. One of a single event, as most are, is left as
-- text with the event's kind and platform beside it, until somebody needs more.
local function new_batch(slot, text, seq, kind, platform_id, operation_id)
  local batch = from(BATCHES)
  batch.slot, batch.text, batch.low, batch.high, batch.kind, batch.platform_id = slot, text, seq, seq, kind, platform_id
  batch.operation_id, batch.events, batch.verdicts = operation_id, false, false
  batch.is_new, batch.is_changed = false, false
  return batch
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
    local number = id:byte() == X and tonumber(id:sub(2)) or nil
    events[#events + 1] = { kind = kind, platform_id = platform_id, id = id, number = number, seq = seq }
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
    local id = event.number and 'x' .. event.number or event.id
    items[i] = event.kind .. event.platform_id .. '.' .. id .. (event.seq ~= seq and '@' .. event.seq or '')
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

-- values: of the fields in the list `names`, each at the same index, false if there is none. Or both are one list of
-- names and values in turn, as HGETALL has it; then `stride` is 2, else 1. last: the last index of a name.
local function load(names, values, last, stride)
  local state = new_state()
  local user, slots = state.user, state.slots
  for i = 1, last, stride do
    local name, value = names[i], values[i + stride - 1]
    if user[name] ~= nil then
      user[name] = value
    elseif value then
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
        state.tallied = state.tallied or {}
        state.tallied[name] = value
      end
    end
  end
  for i = 1, #SLOT_NAMES do
    local slot = SLOT_NAMES[i]
    if user[slot] then slots[#slots + 1] = slot end
  end
  if not slots[1] then -- written by a release that knew no batches
    for _, record in ipairs(state.platform_list) do
      record.sum_on, record.sum_off, record.is_sum_changed = record.on, record.off, true
    end
  end
  return state
end

local function read(key)
  local fields = call('HGETALL', key)
  return load(fields, fields, #fields, 2)
end

-- Writing: HSET and HDEL with their fields, and how long these lists are at the moment.

local to_set, set_length, to_delete, delete_length = { 'HSET' }, 2, { 'HDEL' }, 2

local function begin_writing(key)
  to_set[2], set_length, to_delete[2], delete_length = key, 2, key, 2
end

local function set(name, value)
  local length = set_length + 2
  set_length = length
  to_set[length - 1], to_set[length] = name, value
end

local function delete(name)
  delete_length = delete_length + 1
  to_delete[delete_length] = name
end

local function write()
  if set_length > 2 then call(unpack(to_set, 1, set_length)) end
  if delete_length > 2 then call(unpack(to_delete, 1, delete_length)) end
end

-- Sets a public field or a slot unless it is so already. A step has a dozen of these: it does not call `set` for each.
local function put(user, name, value)
  if user[name] == value then return end
  local length = set_length + 2
  set_length = length
  to_set[length - 1], to_set[length] = name, value
end

local DIGITS = {} -- by the numbers that have come

-- A number of sessions as text.
local function digits(number)
  local text = DIGITS[number]
  if not text then
    text = tostring(number)
    DIGITS[number] = text
  end
  return text
end

local function text_of_record(record)
  if record.lease == '' then return record.on .. ' ' .. record.off .. ' ' .. record.platform end
  return record.on .. ' ' .. record.off .. ' ' .. record.platform .. ' ' .. record.lease
end

local function has_batches(state)
  return state.slots[1] or state.recent[1] or state.batches
end

local function put_records(state)
  local are_summed_up = has_batches(state)
  local list = state.list
  for i = 1, #list do
    local record = list[i]
    if record.is_platform then
      local text = text_of_record(record)
      if text ~= record.text then set(record.scope, text) end
      if are_summed_up and record.is_sum_changed then
        local mixed = record.mixed ~= NONE and ' ' .. record.mixed or ''
        set('s:' .. record.platform, record.sum_on .. ' ' .. record.sum_off .. mixed)
      end
    elseif record.is_changed then
      if record.on == NONE and record.off == NONE then
        delete(record.scope)
      else
        set(record.scope, text_of_record(record))
      end
    end
  end
  local forgotten = state.forgotten
  for i = 1, #forgotten do delete(forgotten[i]) end
end

local function free_slot(user)
  for i = 1, #SLOT_NAMES do
    if not user[SLOT_NAMES[i]] then return SLOT_NAMES[i] end
  end
end

local function put_batches(state)
  local user, freed, batches = state.user, state.freed, state.batches or state.recent
  for i = 1, #batches do
    local batch = batches[i]
    if not batch.slot then
      batch.slot = table.remove(freed) or free_slot(user)
      user[batch.slot] = ''
    end
    if batch.is_changed or batch.is_new then put(user, batch.slot, text_of(batch)) end
  end
  for i = 1, #freed do delete(freed[i]) end
end
