-- Batches: what OpenIM 3.8.2 and later sends of what happened within one second, in an order that is lost. What they
-- say of platforms, and what platforms are by them. The usual event begins a batch that is newer than everything known
-- of the user, or belongs to the last such one, and needs none of those in the hash: `recent` has these batches of a
-- step, in order, until an event comes that is of another kind.

local BATCHES_MAX = #SLOT_NAMES -- remembered one by one
local EVENTS_MAX = 64 -- of one batch, remembered one by one: OpenIM sends one for each change and connection of the user
local SPAN = 60000 -- events of one operationID are one batch while their seqs, in ms, are less than this apart

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
    local number = event.number or 1
    if event.kind == 'n' then
      count.online = count.online + number
    else
      count.offline = count.offline + number
      if event.kind == 'k' then count.kicks = count.kicks + number end
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

-- How this step reads each platform that a batch names both online and offline, a letter for each; if all its
-- offline events are kicks, the batch is clear.
local KEPT, CLOSED = 'k', 'c'

local function readings(state)
  local letters, batches = '', state.batches or state.recent
  for i = 1, #batches do
    local batch = batches[i]
    if batch.verdicts and (batch.is_new or batch.is_changed) then
      for _, verdict in ipairs(batch.verdicts) do
        if verdict.online > 0 and verdict.offline > verdict.kicks then
          letters = letters .. (verdict.says_online and KEPT or CLOSED)
        end
      end
    end
  end
  return letters
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

-- Whether a remembered batch has an event of the platform with this seq.
local function has_seq(state, platform_id, seq)
  for _, batch in ipairs(state.batches) do
    if batch.kind then
      if batch.platform_id == platform_id and batch.low == seq then return true end
    else
      for _, event in ipairs(events_of(batch)) do
        if event.platform_id == platform_id and event.seq == seq then return true end
      end
    end
  end
  return false
end

-- Adds to the sum what is in no batch: during an upgrade, workers of a release that knows none write to the same users.
local function adopt_others(state)
  for _, record in ipairs(state.platform_list) do
    for mark, sum in pairs({ on = 'sum_on', off = 'sum_off' }) do
      local seq = record[mark]
      if higher(seq, record[sum]) and not has_seq(state, record.platform, seq) then
        record[sum], record.is_sum_changed = seq, true
      end
    end
  end
end

-- Reads the batches that are remembered.
local function load_batches(state)
  if state.batches then return end
  local batches = state.recent
  state.batches, state.recent = batches, {}
  for _, slot in ipairs(state.slots) do
    local text = state.user[slot]
    local seq, kind, platform_id = text:match('^(%d+) (%a)(%d+)%.%w* ')
    local batch = new_batch(slot, text, seq, kind, platform_id, false)
    if not kind then events_of(batch) end
    batches[#batches + 1] = batch
  end
  adopt_others(state)
  sort_batches(batches)
  settle(state)
end

-- batch: the one that has said so, if it is at hand.
local function sum_up(record, is_online_said, seq, batch, is_mixed)
  record.is_sum_changed = true
  if not is_online_said then
    record.sum_off = highest(record.sum_off, seq)
    if is_mixed then record.mixed = highest(record.mixed, seq) end
  elseif not (batch and batch.is_new and seq == record.mixed and operation_of(batch) ~= '') then
    -- Else it is a part of a batch that said offline, delivered once more after that was summed up.
    record.sum_on = highest(record.sum_on, seq)
  end
end

local function free(state, slot)
  state.freed[#state.freed + 1] = slot
end

-- Of the slots, the index of the one that has the earliest batch, and its seq, kind and platform; nil if it takes more
-- than a look to say which that is, or what it says: with a comma it may have several events. If another has several,
-- its highest seq is no lower than the one that it begins with.
local function earliest_slot(state)
  local user, slots, earliest, earliest_seq, is_tie = state.user, state.slots, nil, nil, nil
  for i = 1, #slots do
    local text = user[slots[i]]
    local seq = sub(text, 1, find(text, ' ', 1, true) - 1)
    if not earliest or higher(earliest_seq, seq) then
      earliest, earliest_seq, is_tie = i, seq, false
    elseif seq == earliest_seq then
      is_tie = true
    end
  end
  local text = user[slots[earliest]]
  if is_tie or find(text, ',', 1, true) then return nil end
  return earliest, earliest_seq, text:match('^%d+ (%a)(%d+)')
end

-- Adds up the batches of so many slots, the earliest; false if they must be read for that.
local function sum_up_slots(state, count)
  for _ = 1, count do
    local index, seq, kind, platform_id = earliest_slot(state)
    if not index then return false end
    sum_up(platform_record(state, platform_id), kind == 'n', seq, nil, false)
    free(state, table.remove(state.slots, index))
  end
  return true
end

-- Adds up a batch that has spoken.
local function sum_up_batch(state, batch)
  if batch.kind then
    return sum_up(state.platforms[batch.platform_id], batch.kind == 'n', batch.low, batch, false)
  end
  for _, verdict in ipairs(batch.verdicts) do
    local is_mixed = verdict.online > 0 and verdict.offline > 0
    sum_up(state.platforms[verdict.platform_id], verdict.says_online, verdict.seq, batch, is_mixed)
  end
end

-- Only the newest batches are remembered from now on, and what the others have said is added up.
local function forget_batches(state)
  local surplus = #state.slots + #state.recent - BATCHES_MAX
  if not state.batches then
    if surplus <= 0 then return end
    if sum_up_slots(state, math.min(surplus, #state.slots)) then
      for _ = 1, #state.recent - BATCHES_MAX do
        sum_up_batch(state, table.remove(state.recent, 1))
      end
      return
    end
    load_batches(state)
  end
  local has_new = false
  while #state.batches > BATCHES_MAX do
    local batch = table.remove(state.batches, 1)
    sum_up_batch(state, batch)
    if batch.slot then free(state, batch.slot) end
    has_new = has_new or batch.is_new
  end
  if has_new then settle(state) end
end

local function has_lower_seq(a, b)
  return higher(b.seq, a.seq)
end

-- Past EVENTS_MAX a batch's events of one kind and platform are only counted: nothing tells one of them, delivered again,
-- from another.
local function put_event(events, event)
  if #events < EVENTS_MAX then
    events[#events + 1] = event
    return
  end
  local number = event.number or 1
  for _, known in ipairs(events) do
    if known.number and known.kind == event.kind and known.platform_id == event.platform_id then
      known.number, known.seq = known.number + number, highest(known.seq, event.seq)
      return
    end
  end
  events[#events + 1] = { kind = event.kind, platform_id = event.platform_id, number = number, seq = event.seq }
end

-- Divides events of one operationID into batches anew, from the lowest seq up.
local function divide(state, batches, events)
  local operation_id = operation_of(batches[1])
  table.sort(events, has_lower_seq)
  local part, parts = nil, 0
  for _, event in ipairs(events) do
    if not part or not is_near(part.low, event.seq, SPAN) then
      parts = parts + 1
      part = batches[parts]
      if not part then
        part = new_batch(false, false, false, false, false, operation_id)
        state.batches[#state.batches + 1] = part
      end
      part.events, part.low, part.is_changed, part.kind, part.is_new = {}, event.seq, true, false, true
    end
    put_event(part.events, event)
    part.high, part.is_new = event.seq, part.is_new and event.is_new
  end
end

local function is_same(a, b)
  return a.id == b.id and a.seq == b.seq and a.kind == b.kind and a.platform_id == b.platform_id
end

-- The remembered batches of this operationID, or nil if there are none.
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
  local user, slots, ending = state.user, state.slots, ' ' .. operation_id
  local length = #ending
  for i = 1, #slots do
    if find(user[slots[i]], ending, -length, true) then return true end
  end
  return false
end

local function fits(batch, seq)
  events_of(batch) -- which may set its low and high
  return is_near(lowest(batch.low, seq), highest(batch.high, seq), SPAN)
end

local function add_event(batch, item)
  put_event(events_of(batch), item)
  batch.low, batch.high = lowest(batch.low, item.seq), highest(batch.high, item.seq)
  operation_of(batch) -- which its text says
  batch.kind, batch.is_changed = false, true
end

local function batch_of(item, operation_id)
  local text = item.seq .. ' ' .. item.kind .. item.platform_id .. '.' .. item.id .. ' ' .. operation_id
  local batch = new_batch(false, text, item.seq, item.kind, item.platform_id, operation_id)
  batch.is_new = true
  return batch
end

-- Whether an event begins a batch that is newer than everything known of the user.
local function is_newest(state, item, operation_id)
  local recent = state.recent
  local last = recent[#recent]
  if not higher(item.seq, last and last.high or state.user.seq or NONE) then return false end
  if operation_id == '' then return true end
  for i = 1, #recent do
    if operation_of(recent[i]) == operation_id then return false end
  end
  return not names_slot(state, operation_id)
end

-- Lets it begin: all others have spoken.
local function begin_newest(state, item, operation_id)
  local list, recent = state.platform_list, state.recent
  for i = 1, #list do
    local record = list[i]
    record.before_on, record.before_off = record.on, record.off
  end
  local batch = batch_of(item, operation_id)
  recent[#recent + 1] = batch
  take_batch(state, batch)
  return true
end

-- Puts a further event into the newest batch; false if it is there already.
local function join_newest(state, newest, item)
  for _, known in ipairs(events_of(newest)) do
    if is_same(known, item) then return false end
  end
  add_event(newest, item)
  for _, record in ipairs(state.platform_list) do
    record.on, record.off = record.before_on, record.before_off
  end
  take_batch(state, newest)
  return true
end

-- Puts an event wherever it belongs among the batches; false if it is there already.
local function insert(state, item, operation_id)
  load_batches(state)
  local batches, events = batches_of(state, operation_id), { item }
  for _, batch in ipairs(batches or {}) do
    for _, known in ipairs(events_of(batch)) do
      if is_same(known, item) then return false end
      known.is_new = known.is_new or batch.is_new
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

-- Puts an event of a platform into its batch, and gives the platforms what the batches say then; false if the event
-- is there already.
local function remember(state, event)
  local operation_id = event.operation_id
  if operation_id == '' then
    event.id = '' -- events of one kind and seq are one
  else
    -- Within a batch eight characters tell events apart; if a receiver is too old to give them, the time does.
    event.id = (event.given_id ~= '' and event.given_id or event.received_at):match('%w*$'):sub(-8)
  end
  if not state.batches then
    local newest = state.recent[#state.recent]
    if newest and operation_id ~= '' and operation_of(newest) == operation_id and fits(newest, event.seq) then
      return join_newest(state, newest, event)
    end
    if is_newest(state, event, operation_id) then return begin_newest(state, event, operation_id) end
  end
  return insert(state, event, operation_id)
end
