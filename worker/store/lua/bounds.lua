-- Bounds: how many sessions and closed connections of a user are remembered; those with the lowest seqs go first.

local CLOSED_MAX = 32 -- closed connections remembered
local ONLINE_MAX = 256 -- sessions online

local function is_lower(seqs, scope, other)
  if seqs[scope] ~= seqs[other] then return higher(seqs[other], seqs[scope]) end
  return scope < other
end

-- Up to `most` of the scopes that have the lowest seqs, lowest first. seqs: by scope.
local function lowest_scopes(seqs, most)
  local found, last = {}, 0
  for scope in pairs(seqs) do
    if last < most or is_lower(seqs, scope, found[last]) then
      local place = last < most and last + 1 or last
      last = place
      while place > 1 and is_lower(seqs, scope, found[place - 1]) do
        found[place] = found[place - 1]
        place = place - 1
      end
      found[place] = scope
    end
  end
  return found
end

-- The seqs of the sessions that are online, by scope.
local function online_seqs(state)
  local seqs = {}
  for _, record in ipairs(state.list) do
    if is_online(state, record) then seqs[record.scope] = record.on end
  end
  return seqs
end

-- The seqs of the connections that are closed, by scope.
local function closed_seqs(state)
  local seqs = {}
  for scope, seq in pairs(state.closed) do seqs[scope] = seq end
  for _, record in ipairs(state.list) do
    if record.is_connection and not is_online(state, record) then
      seqs[record.scope] = highest(record.on, record.off)
    end
  end
  return seqs
end

local function drop(state, scope)
  if state.closed[scope] then take_closed(state, scope) end
  if state.records[scope] then
    state.records[scope] = nil
    for i, record in ipairs(state.list) do
      if record.scope == scope then
        table.remove(state.list, i)
        break
      end
    end
  end
  state.forgotten[#state.forgotten + 1] = scope
end

-- Forgets that a session was opened.
local function forget_session(state, scope)
  local record = state.records[scope] or state.platforms[scope:sub(3)]
  if record.is_platform then
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
  if record.is_connection and record.off == NONE then drop(state, scope) end
end

local function forget_connection(state, scope, seq)
  state.floor = highest(state.floor or state.user.floor or NONE, seq)
  drop(state, scope)
end

-- The id of the one platform that has connections online, '' if none has, nil if several have.
local function sole_platform(platforms)
  local sole = next(platforms)
  if not sole then return '' end
  if not next(platforms, sole) then return sole end
end

-- How many sessions are online, and connections closed; the id of the one platform of these sessions, '' if there are
-- none, nil if there are several; when the earliest lease began, or nil.
local function count(state)
  local online, closed, platform, earliest = 0, state.closed_number, '', nil
  local rest = state.rest
  if rest then online, closed, platform = rest.online, closed + rest.closed, sole_platform(rest.platforms) end
  local list = state.list
  for i = 1, #list do
    local record = list[i]
    if is_online(state, record) then
      online = online + 1
      local began = record.lease ~= '' and tonumber(record.lease)
      if began and (not earliest or began < earliest) then earliest = began end
      if platform == '' then
        platform = record.platform
      elseif platform ~= record.platform then
        platform = nil
      end
    elseif record.is_connection then
      closed = closed + 1
    end
  end
  return online, closed, platform, earliest
end

-- The ids of the platforms that are online, ascending.
local function list_platforms(state)
  local ids, seen = {}, {}
  local function see(id)
    if id ~= '0' and not seen[id] then
      seen[id] = true
      ids[#ids + 1] = tonumber(id)
    end
  end
  for id in pairs(state.rest and state.rest.platforms or {}) do see(id) end
  for _, record in ipairs(state.list) do
    if is_online(state, record) then see(record.platform) end
  end
  table.sort(ids)
  return table.concat(ids, ',')
end

-- Keeps the bounds; returns how many sessions are online, the ids of their platforms, when the earliest lease began, or
-- nil, and how many closed connections are remembered.
local function bound(state)
  local online, closed, platforms, earliest = count(state)
  if online > ONLINE_MAX then
    local seqs = online_seqs(state)
    for _, scope in ipairs(lowest_scopes(seqs, online - ONLINE_MAX)) do forget_session(state, scope) end
    online, closed, platforms, earliest = count(state)
  end
  if closed > CLOSED_MAX then
    local seqs = closed_seqs(state)
    for _, scope in ipairs(lowest_scopes(seqs, closed - CLOSED_MAX)) do forget_connection(state, scope, seqs[scope]) end
    closed = CLOSED_MAX
  end
  if not platforms then
    platforms = list_platforms(state)
  elseif platforms == '0' then
    platforms = ''
  end
  return online, platforms, earliest, closed
end
