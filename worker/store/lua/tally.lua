-- The tally: what a step must know of those connections of a user that none of its events is about. Up to 3.7 OpenIM
-- gives each connection a name of its own, so that soon 32 closed ones are remembered, and reading all of them takes
-- several times as long as the rest of a step. Where there is a tally a step reads a part: everything but connections,
-- those of its events, and those that must be forgotten for them.
--
-- Its private fields of the hash, which are there if connections are many:
--       "t:0"  ->  "<seq> <updated_at> <closed> <length of t:c> <length of t:o> <platform_ids> <online>"
--       the user's seq and updated_at as it was written; how many connections are closed; how long the two queues are;
--       the platforms that have records of their own, each "<id>,"; how many connections are online, each platform's
--       "<id>:<number>,"
--       "t:c1", ..., "t:o1", ...  ->  "<conn_id>"
--       queues of what is to be forgotten next, closed connections and online ones: the highest number goes first
--
-- Workers of older releases know no tally, and leave behind one that is wrong. They change the user's seq, updated_at
-- or sessions as they do: then it counts no more.

local TALLY = 't:0'
local TALLIED_MIN = 16 -- connections; fewer are read as fast
local TALLIED_FIELDS = TALLIED_MIN + 11 -- with the public fields: a hash of fewer has no tally
local QUEUED = 4 -- one of so many is in a queue: the shorter it is, the oftener all are read
local LONGEST = 64 -- bytes: a longer value would take the hash its compact form
local NOTHING = {}
local PART = { -- of the public fields those that are not merely written
  'status', 'seq', 'updated_at', 'command', 'sessions', 'platforms', 'floor', 'outbox', 'u', 'b:0', 'b:1', 'b:2', 'b:3',
}

-- Fields and values, as HGETALL would list them, of all that is not a connection, and of the connections of the events.
-- ids: of the platforms that have records.
local function part_of(key, events, ids)
  local names, is_named = { unpack(PART) }, {}
  for id in ids:gmatch('%d+') do
    names[#names + 1] = 'p:' .. id
    names[#names + 1] = 's:' .. id
  end
  for _, event in ipairs(events) do
    local conn_id = event.conn_id
    if conn_id ~= '' and not is_named[conn_id] then
      is_named[conn_id] = true
      names[#names + 1] = 'c:' .. conn_id
    end
  end
  local flat, last = {}, 0
  for i, value in ipairs(call('HMGET', key, unpack(names))) do
    if value then
      flat[last + 1], flat[last + 2] = names[i], value
      last = last + 2
    end
  end
  return flat
end

-- The rest: the connections that are not in the state. platforms: how many are online, by platform. offs: the seqs that
-- cover these. next_closed, next_online: the scopes at the beginnings of the queues, if they are needed.
local function new_rest(closed, closed_length, online_length, counts)
  local rest = {
    online = 0, closed = tonumber(closed), platforms = {}, offs = NOTHING, user_off = NONE, next_closed = NOTHING,
    next_online = NOTHING, closed_length = tonumber(closed_length), online_length = tonumber(online_length),
  }
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
  local last, is_out = state.user.seq, {}
  for _, event in ipairs(events) do
    local scope = event.conn_id ~= '' and 'c:' .. event.conn_id
    if scope then
      local record = state.records[scope]
      if not higher(event.seq, last) or state.closed[scope] or (record and event.kind == 'n') then return false end
      last = event.seq
      if record and not is_out[scope] then
        is_out[scope] = true
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

-- Reads a part for these events; nil if that would not do.
local function read_part(key, events, options)
  local tally = call('HGET', key, TALLY)
  if not tally then return nil end
  local seq, updated_at, closed, closed_length, online_length, ids, counts =
    tally:match('^(%S+) (%S+) (%d+) (%d+) (%d+) (%S*) (%S*)$')
  local rest = new_rest(closed, closed_length, online_length, counts)
  if rest.closed == CLOSED_MAX and rest.closed_length == 0 then return nil end -- the next to close would need all
  local state = load(part_of(key, events, ids))
  local user, online = state.user, rest.online
  for _, record in ipairs(state.list) do
    if not record.is_connection and is_online(state, record) then online = online + 1 end
  end
  if seq ~= user.seq or updated_at ~= user.updated_at or online ~= tonumber(user.sessions) then return nil end

  state.rest, state.tallied = rest, { [TALLY] = tally }
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
    local conn_id = length > #scopes and call('HGET', key, prefix .. length - #scopes)
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

-- How many connections are online, by platform; nil if one is closed only by what covers it, and so may open again
-- without an event of its own.
local function count_connections(state)
  local counts = {}
  for id, number in pairs(state.rest and state.rest.platforms or {}) do counts[id] = number end
  for _, record in ipairs(state.list) do
    if record.is_connection and not is_closed_by_itself(record.on, record.off, record.lease) then
      if not is_online(state, record) then return nil end
      counts[record.platform] = (counts[record.platform] or 0) + 1
    end
  end
  return counts
end

-- Takes from a queue those that were next and have been forgotten, or are no longer what it is of; returns its length.
local function shorten(state, prefix, length, scopes, is_online)
  for _, scope in ipairs(scopes) do
    if state.closed[scope] and not is_online or state.records[scope] and is_online then break end
    delete(prefix .. length)
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
  for i, conn_id in ipairs(names) do fields[prefix .. #names + 1 - i] = conn_id end
  return #names
end

-- The tally, and the queues if there are none yet: fields and values.
local function tally_of(state, sessions, closed)
  local fields, counts = {}, count_connections(state)
  if not counts then return fields end
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
  local text = seq .. ' ' .. updated_at .. ' ' .. closed .. ' ' .. closed_length .. ' ' .. online_length .. ' '
  for id in pairs(state.platforms) do text = text .. id .. ',' end
  text = text .. ' '
  for id, number in pairs(counts) do text = text .. id .. ':' .. number .. ',' end
  if #text > LONGEST then return {} end
  fields[TALLY] = text
  return fields
end

-- Writes the tally anew, or takes it away. sessions, closed: how many there are.
local function put_tally(state, sessions, closed)
  local tallied = state.tallied
  if not tallied and sessions + closed < TALLIED_MIN then return end
  local fields = sessions + closed < TALLIED_MIN and NOTHING or tally_of(state, sessions, closed)
  for name in pairs(tallied or NOTHING) do
    if not fields[name] then delete(name) end
  end
  for name, value in pairs(fields) do
    if not tallied or tallied[name] ~= value then set(name, value) end
  end
end
