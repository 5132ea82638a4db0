"""What happens inside Redis: one Lua script a verb, each atomic over all the windows it is given. Needs Redis 7 or newer.

A counted window is three keys that expire together, once, a while after it ended: `…:used`, `…:limit` and `…:starts_at`. The
last says which stretch of time is counted, so nothing depends on when Redis removes a key: a window that ended is begun anew
by whoever comes first, and one that began later than the caller's clock says goes on. What runs at once is a sorted set of
leases, scored by the millisecond in which they lapse.

A reservation is one key: `o` and a packed list of charges while it is open, `r` and the answer when it was refused, `c` when
it is closed, `u` and an attempt's number when that attempt was given up and must not be carried out if it arrives late.

Answers are one string, `g 5:1700000000 7!:1700000000`: g, r, c, u or p (peeked), then for each window what is used, `!` where
it has no room, and when it began.
"""

from __future__ import annotations

import hashlib

import msgspec


class Script(msgspec.Struct, frozen=True):
    """A script, and the name that Redis knows it by once it was loaded."""

    text: str
    sha: str


def _script(flags: str, text: str) -> Script:
    whole = f"#!lua{flags}\n{text}"
    return Script(whole, hashlib.sha1(whole.encode(), usedforsecurity=False).hexdigest())


# KEYS: reservation, then each window's. ARGV: id, attempt, now ms, ms to keep it open, ms to keep a refusal, ms of a lease,
# 1 to ask anew after a refusal; then for each window limit, amount, start (0: leases), ms to live.
RESERVE = _script(
    "",
    """
local kept = redis.call('GET', KEYS[1])
if kept then
  local mark = string.sub(kept, 1, 1)
  if mark == 'o' then return cmsgpack.unpack(string.sub(kept, 2))[1] end
  if mark == 'c' then return 'c' end
  if mark == 'r' and ARGV[7] ~= '1' then return kept end
  if mark == 'u' and kept == 'u' .. ARGV[2] then return 'u' end
end
local windows, fits, answer = {}, true, {}
for i = 2, #KEYS do
  local at = 4 * i
  local w = {key = KEYS[i], limit = ARGV[at], amount = tonumber(ARGV[at + 1]), start = tonumber(ARGV[at + 2])}
  if w.start == 0 then
    redis.call('ZREMRANGEBYSCORE', w.key, '-inf', ARGV[3])
    w.used = redis.call('ZCARD', w.key)
  else
    w.stem = string.sub(w.key, 1, -5)
    local held = redis.call('MGET', w.key, w.stem .. 'starts_at', w.stem .. 'limit')
    local began = tonumber(held[2] or 0)
    if held[1] and began >= w.start then
      w.used, w.start, w.told_limit = tonumber(held[1]), began, held[3]
    else
      w.used, w.fresh = 0, true
    end
  end
  w.full = w.used + w.amount > tonumber(w.limit)
  if w.full then fits = false end
  windows[i - 1] = w
end
for i, w in ipairs(windows) do
  local used = w.used
  if fits then used = used + w.amount end
  answer[i] = string.format('%.0f%s:%.0f', used, w.full and '!' or '', w.start)
end
local told = table.concat(answer, ' ')
if not fits then
  told = 'r ' .. told
  redis.call('SET', KEYS[1], told, 'PX', ARGV[5])
  return told
end
told = 'g ' .. told
local charges = {told, ARGV[2]}
for i, w in ipairs(windows) do
  local amount = ARGV[4 * i + 5]
  if w.start == 0 then
    for n = 1, w.amount do redis.call('ZADD', w.key, ARGV[3] + ARGV[6], ARGV[1] .. '#' .. n) end
    redis.call('PEXPIRE', w.key, ARGV[6])
  elseif w.fresh then
    local live = ARGV[4 * i + 7]
    redis.call('SET', w.key, amount, 'PX', live)
    redis.call('SET', w.stem .. 'starts_at', w.start, 'PX', live)
    redis.call('SET', w.stem .. 'limit', w.limit, 'PX', live)
  else
    redis.call('INCRBY', w.key, amount)
    if w.told_limit ~= w.limit then redis.call('SET', w.stem .. 'limit', w.limit, 'KEEPTTL') end
  end
  charges[#charges + 1] = {w.key, w.start, w.amount}
end
redis.call('SET', KEYS[1], 'o' .. cmsgpack.pack(charges), 'PX', ARGV[4])
return told
""",
)

_CLOSE = """
local function close(kept, id, actual)
  local charges = cmsgpack.unpack(string.sub(kept, 2))
  for i = 3, #charges do
    local key, start, amount = charges[i][1], charges[i][2], charges[i][3]
    if start == 0 then
      for n = 1, amount do redis.call('ZREM', key, id .. '#' .. n) end
    else
      local stem = string.sub(key, 1, -5)
      local used = actual[string.match(stem, '([^:]*):$')]
      local more = (tonumber(used) or amount) - amount
      if more ~= 0 and tonumber(redis.call('GET', stem .. 'starts_at') or 0) == start then
        redis.call('INCRBY', key, string.format('%.0f', more))
      end
    end
  end
end
"""

# KEYS: reservation. ARGV: id, ms to remember it, then what was used of requests and of tokens ('': as reserved).
SETTLE = _script(
    " flags=allow-oom",
    _CLOSE
    + """
local kept = redis.call('GET', KEYS[1])
local mark = kept and string.sub(kept, 1, 1)
if mark == 'r' or mark == 'c' then return 'c' end
if mark == 'o' then close(kept, ARGV[1], {requests = ARGV[3], tokens = ARGV[4]}) end
redis.call('SET', KEYS[1], 'c', 'PX', ARGV[2])
return 'c'
""",
)

# KEYS: reservation. ARGV: id, ms to remember it, and the attempt to give up: what another attempt reserved stays. '' releases
# the reservation whichever made it.
RELEASE = _script(
    " flags=allow-oom",
    _CLOSE
    + """
local kept = redis.call('GET', KEYS[1])
local mark = kept and string.sub(kept, 1, 1)
local attempt = ARGV[3]
if mark == 'c' or (mark == 'r' and attempt == '') then return 'c' end
if mark == 'o' then
  if attempt ~= '' and cmsgpack.unpack(string.sub(kept, 2))[2] ~= attempt then return 'o' end
  close(kept, ARGV[1], {requests = 0, tokens = 0})
end
redis.call('SET', KEYS[1], attempt == '' and 'c' or 'u' .. attempt, 'PX', ARGV[2])
return 'c'
""",
)

# KEYS: each window's. ARGV: now ms, then for each window limit and start.
PEEK = _script(
    " flags=no-writes",
    """
local answer = {}
for i, key in ipairs(KEYS) do
  local limit, start, used = tonumber(ARGV[2 * i]), tonumber(ARGV[2 * i + 1]), 0
  if start == 0 then
    used = redis.call('ZCOUNT', key, '(' .. ARGV[1], '+inf')
  else
    local held = redis.call('MGET', key, string.sub(key, 1, -5) .. 'starts_at')
    local began = tonumber(held[2] or 0)
    if held[1] and began >= start then used, start = tonumber(held[1]), began end
  end
  answer[i] = string.format('%.0f%s:%.0f', used, used >= limit and '!' or '', start)
end
return 'p ' .. table.concat(answer, ' ')
""",
)

# KEYS: reservations. ARGV: now ms, ms of a lease, then the id of each. Says with 1 or 0 which of them are open and hold leases:
# what was closed elsewhere is not leased again.
RENEW = _script(
    " flags=allow-oom",
    """
local answer = {}
for i, record in ipairs(KEYS) do
  local kept, held = redis.call('GET', record), '0'
  if kept and string.sub(kept, 1, 1) == 'o' then
    local charges = cmsgpack.unpack(string.sub(kept, 2))
    for c = 3, #charges do
      local key, start, amount = charges[c][1], charges[c][2], charges[c][3]
      if start == 0 then
        held = '1'
        for n = 1, amount do redis.call('ZADD', key, ARGV[1] + ARGV[2], ARGV[i + 2] .. '#' .. n) end
        redis.call('PEXPIRE', key, ARGV[2])
      end
    end
    redis.call('PEXPIRE', record, ARGV[2], 'GT')
  end
  answer[i] = held
end
return table.concat(answer)
""",
)

ALL = (RESERVE, SETTLE, RELEASE, PEEK, RENEW)
