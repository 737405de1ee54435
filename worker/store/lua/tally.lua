-- The tally: what a step must know of those connections of a user that none of its events is about. Up to 3.7 OpenIM
-- gives each connection a name of its own, so that soon 32 closed ones are remembered, and reading all of them takes
-- several times as long as the rest of a step. Where there is a tally a step reads a part: everything but connections,
-- those of its events, and those that must be forgotten for them.
--
-- Its private fields of the hash, which are there if connections are many:
--       "t:1"  ->  "<seq> <updated_at> <closed> <length of t:c> <length of t:o> <others> <online>"
--       the user's seq and updated_at as it was written; how many connections are closed; how long the two queues are;
--       what else is remembered: platforms, each "<id>,", "b" for batches and "u" for the user as a whole; how many
--       connections are online, each platform's "<id>:<number>,"
--       "t:c1", ..., "t:o1", ...  ->  "<conn_id>"
--       queues of what is to be forgotten next, closed connections and online ones: the highest number goes first
--
-- Workers of older releases know no tally, and leave behind one that is wrong. They change the user's seq, updated_at
-- or sessions as they do: then it counts no more.

local TALLY = 't:1'
local TALLIED_MIN = 16 -- connections; fewer are read as fast
local TALLIED_FIELDS = TALLIED_MIN + 11 -- with the public fields: a hash of fewer has no tally
local QUEUED = 4 -- one of so many is in a queue: the shorter it is, the oftener all are read
local LONGEST = 64 -- bytes: a longer value would take the hash its compact form
local NOTHING = {}
local PART_FIELDS = 8
local PART = { -- of the public fields those that are not merely written
  'status', 'seq', 'updated_at', 'command', 'sessions', 'platforms', 'floor', 'outbox',
}

-- Reads all that is not a connection, and the connections of the events. others: as in the tally.
local function load_part(key, events, others)
  local names, last = PART, PART_FIELDS -- and beyond that what the last user had
  if others ~= '' then
    for id in others:gmatch('%d+') do
      names[last + 1], names[last + 2] = 'p:' .. id, 's:' .. id
      last = last + 2
    end
    if find(others, 'u', 1, true) then
      last = last + 1
      names[last] = 'u'
    end
    if find(others, 'b', 1, true) then
      for i = 1, #SLOT_NAMES do names[last + i] = SLOT_NAMES[i] end
      last = last + #SLOT_NAMES
    end
  end
  local is_named = events[2] and {}
  for i = 1, #events do
    local conn_id = events[i].conn_id
    if conn_id ~= '' and not (is_named and is_named[conn_id]) then
      if is_named then is_named[conn_id] = true end
      last = last + 1
      names[last] = 'c:' .. conn_id
    end
  end
  return load(names, call('HMGET', key, unpack(names, 1, last)), last, 1)
end

-- The rest: the connections that are not in the state. platforms: how many are online, by platform. offs: the seqs that
-- cover these. next_closed, next_online: the scopes at the beginnings of the queues, if they are needed.
local REST = {} -- used again for the next user

local function new_rest(closed, closed_length, online_length, counts)
  local rest = REST
  rest.closed, rest.closed_length, rest.online_length =
    tonumber(closed), tonumber(closed_length), tonumber(online_length)
  rest.online, rest.platforms, rest.offs, rest.user_off = 0, NOTHING, NOTHING, NONE
  rest.next_closed, rest.next_online = NOTHING, NOTHING
  if counts == '' then return rest end
  rest.platforms = {}
  for id, number in counts:gmatch('(%d+):(%d+)') do
    rest.platforms[id] = tonumber(number)
    rest.online = rest.online + number
  end
  return rest
end

-- Takes a connection that is in the state now out of the rest.
local function take_out(state, scope)
  local rest, record = state.rest, state.records[scope]
  if not record then
    rest.closed = rest.closed - 1
  else
    local left = (rest.platforms[record.platform] or 0) - 1
    rest.online, rest.platforms[record.platform] = rest.online - 1, left > 0 and left or nil
  end
end

-- Takes the connections of the events out of the rest; false if the queues would not hold then. They do if each
-- event is newer than all that is known, and its connection is new, or online and leaves.
local function take_out_connections(state, events)
  local last, is_out = state.user.seq, events[2] and {}
  for i = 1, #events do
    local event = events[i]
    if event.conn_id ~= '' then
      local scope = 'c:' .. event.conn_id
      local record = state.records[scope]
      if not higher(event.seq, last) or state.closed[scope] or (record and event.kind == 'n') then return false end
      last = event.seq
      if record and not (is_out and is_out[scope]) then
        if is_out then is_out[scope] = true end
        take_out(state, scope)
      end
    end
  end
  return true
end

local function off_of(state, platform_id)
  local record = state.platforms[platform_id]
  return record and record.off or NONE
end

local TALLIED = {} -- what a part has of the tally's fields: the first

-- Reads a part for these events; nil if that would not do.
local function read_part(key, events, options)
  local tally = call('HGET', key, TALLY)
  if not tally then return nil end
  local seq, updated_at, closed, closed_length, online_length, others, counts =
    tally:match('^(%S+) (%S+) (%d+) (%d+) (%d+) (%S*) (%S*)$')
  local rest = new_rest(closed, closed_length, online_length, counts)
  if rest.closed == CLOSED_MAX and rest.closed_length == 0 then return nil end -- the next to close would need all
  local state = load_part(key, events, others)
  local user, online = state.user, rest.online
  local list = state.list
  for i = 1, #list do
    if not list[i].is_connection and is_online(state, list[i]) then online = online + 1 end
  end
  if seq ~= user.seq or updated_at ~= user.updated_at or online ~= tonumber(user.sessions) then return nil end

  TALLIED[TALLY] = tally
  state.rest, state.tallied = rest, TALLIED
  if not take_out_connections(state, events) then return nil end
  if rest.online > 0 then
    if options.lease_ms > 0 then return nil end -- which of them ends first is not in the tally
    rest.offs, rest.user_off = {}, state.user_off
    for id in pairs(rest.platforms) do rest.offs[id] = off_of(state, id) end
  end
  return state
end

-- Reads as many as must be forgotten of those that are next in a queue; returns the scopes of what was next, nil if
-- they do not suffice.
local function next_of(state, key, prefix, length, is_online, surplus)
  if surplus <= 0 then return NOTHING end
  local scopes = {}
  while surplus > 0 do
    local conn_id = length > #scopes and call('HGET', key, prefix .. digits(length - #scopes))
    if not conn_id then return nil end
    local scope = 'c:' .. conn_id
    scopes[#scopes + 1] = scope
    local text = not state.records[scope] and call('HGET', key, scope)
    if text then
      load_connection(state, scope, text)
      take_out(state, scope)
      local record = state.records[scope]
      -- Of one that was closed before, more is remembered than that it was opened.
      if record and record.off ~= NONE then return nil end
      if is_online == (record ~= nil) then surplus = surplus - 1 end
    end
  end
  return scopes
end

-- Whether the part that was read is enough for what has been taken in: nothing in the rest has changed by it, and what
-- must be forgotten is there.
local function is_enough(state, key)
  local rest = state.rest
  if not rest or not state.is_changed then return true end
  for id, off in pairs(rest.offs) do
    if off_of(state, id) ~= off then return false end
  end
  if rest.online > 0 and state.user_off ~= rest.user_off then return false end
  local online, closed = count(state)
  rest.next_closed = next_of(state, key, 't:c', rest.closed_length, false, closed - CLOSED_MAX)
  rest.next_online = next_of(state, key, 't:o', rest.online_length, true, online - ONLINE_MAX)
  return rest.next_closed and rest.next_online
end

-- Writing.

-- How many connections are online, each platform's "<id>:<number>,"; nil if one is closed only by what covers it, and so
-- may open again without an event of its own.
local function count_connections(state)
  local counts, list, text = nil, state.list, ''
  if state.rest and state.rest.online > 0 then
    counts = {}
    for id, number in pairs(state.rest.platforms) do counts[id] = number end
  end
  for i = 1, #list do
    local record = list[i]
    if record.is_connection and not is_closed_by_itself(record.on, record.off, record.lease) then
      if not is_online(state, record) then return nil end
      counts = counts or {}
      counts[record.platform] = (counts[record.platform] or 0) + 1
    end
  end
  for id, number in pairs(counts or NOTHING) do text = text .. id .. ':' .. digits(number) .. ',' end
  return text
end

-- Takes from a queue those that were next and have been forgotten, or are no longer what it is of; returns its length.
local function shorten(state, prefix, length, scopes, is_online)
  for _, scope in ipairs(scopes) do
    if state.closed[scope] and not is_online or state.records[scope] and is_online then break end
    delete(prefix .. digits(length))
    length = length - 1
  end
  return length
end

-- Puts connections into a new queue, and says how many; seqs: theirs and those of other sessions, by scope.
local function new_queue(fields, prefix, seqs, most)
  local names = {}
  for _, scope in ipairs(lowest_scopes(seqs, most)) do
    if scope:byte() == C then names[#names + 1] = scope:sub(3) end
  end
  for i, conn_id in ipairs(names) do fields[prefix .. digits(#names + 1 - i)] = conn_id end
  return #names
end

-- The text of the tally; nil if there can be none. Puts the queues, if there are none yet, into `fields`.
local function tally_of(state, sessions, closed, fields)
  local counts = count_connections(state)
  if not counts then return nil end
  local seq, updated_at = state.seq or state.user.seq, state.updated_at or state.user.updated_at
  local rest, closed_length, online_length = state.rest, 0, 0
  if rest then
    closed_length = shorten(state, 't:c', rest.closed_length, rest.next_closed, false)
    online_length = shorten(state, 't:o', rest.online_length, rest.next_online, true)
  else
    local most = math.floor((sessions + closed) / QUEUED)
    if closed == CLOSED_MAX then closed_length = new_queue(fields, 't:c', closed_seqs(state), most) end
    if sessions == ONLINE_MAX then online_length = new_queue(fields, 't:o', online_seqs(state), most) end
  end
  local others, platforms = '', state.platform_list
  for i = 1, #platforms do others = others .. platforms[i].platform .. ',' end
  if has_batches(state) then others = others .. 'b' end
  if state.records.u then others = others .. 'u' end
  local text = seq .. ' ' .. updated_at .. ' ' .. digits(closed) .. ' ' .. digits(closed_length) .. ' '
    .. digits(online_length) .. ' ' .. others .. ' ' .. counts
  return #text <= LONGEST and text or nil
end

-- Writes the tally anew, or takes it away. sessions, closed: how many there are.
local function put_tally(state, sessions, closed)
  local tallied, are_many = state.tallied, sessions + closed >= TALLIED_MIN
  if not tallied and not are_many then return end
  local fields = not state.rest and {}
  local text = are_many and tally_of(state, sessions, closed, fields)
  if state.rest then -- the queues have been shortened, that is all
    if not text then
      delete(TALLY)
    elseif text ~= tallied[TALLY] then
      set(TALLY, text)
    end
    return
  end
  if text then
    fields[TALLY] = text
  else
    fields = NOTHING
  end
  for name in pairs(tallied or NOTHING) do
    if not fields[name] then delete(name) end
  end
  for name, value in pairs(fields) do
    if not tallied or tallied[name] ~= value then set(name, value) end
  end
end
