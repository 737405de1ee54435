-- Sessions: which are online, what an event does to them, and how many are remembered.

local CLOSED_MAX = 32 -- closed connections remembered
local ONLINE_MAX = 256 -- sessions online
local APPLIED, DUPLICATE, STALE = 'a', 'd', 's'

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
    if event.seq == (event.kind == 'n' and record.was_on or record.was_off) then return DUPLICATE end
  end
  return outcome
end

-- An event for a connection, or for the user as a whole.
local function take_plain(state, event, lease)
  local scope, seq = event.conn_id ~= '' and 'c:' .. event.conn_id or 'u', event.seq
  local record = state.records[scope]
  if not record then
    if scope ~= 'u' and not higher(seq, state.user.floor or NONE) then return STALE end
    record = new_record(state, scope, NONE, NONE, '0', '')
  end

  if event.kind ~= 'n' then
    if seq == record.off then return DUPLICATE end
    if higher(record.off, seq) then return STALE end
    record.off, record.is_changed, state.is_changed = seq, true, true
    if scope == 'u' then
      state.user_off = seq
      if state.slots[1] or state.recent[1] then -- batches look at what was online before them
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
    record.sum_on, record.sum_off, record.is_sum_changed = NONE, record.off, true
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
