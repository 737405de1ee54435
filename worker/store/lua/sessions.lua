-- Sessions: which are online, and what an event does to them.

local APPLIED, DUPLICATE, STALE = 'a', 'd', 's'

local function is_open(state, record, on, off)
  if on == NONE or record.lease == EXPIRED or higher(off, on) then return false end
  if state.user_off ~= NONE and higher(state.user_off, on) then return false end
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
  local list = state.platform_list
  for i = 1, #list do
    local record = list[i]
    record.was_on, record.was_off = record.on, record.off
  end
  if not remember(state, event) then return DUPLICATE end
  state.is_changed = true
  local outcome = STALE
  for i = 1, #list do
    local record = list[i]
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
  local record = connection_record(state, scope)
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
