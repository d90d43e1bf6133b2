"""Small damage to real files: bytes of any file, values of JSON.

Every mutation is a function of a random generator, so that a seed repeats it.
"""

import json
import random

EXTREME = (0, 1, 2, 127, 255, 2**16, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1)
DEEP = '[' * 200 + ']' * 200
VALUES = (
  None,
  True,
  False,
  0,
  -1,
  -5,
  1.5,
  5,
  10**6,
  2**31 - 1,
  2**31,
  2**63,
  10**30,
  10**400,
  1e300,
  -1e300,
  float('nan'),
  float('inf'),
  '',
  'abc',
  '..',
  '/etc/passwd',
  'a\0b',
  '\ud800',
  'x' * 100_000,
  [],
  {},
  [[]],
  {'a': {}},
  list(range(1000)),
  json.loads(DEEP),
)


def mutate(data: bytes, rng: random.Random) -> tuple[str, bytes]:
  """(what was done, the damaged bytes)."""
  line = b'\n' in data.strip() and data[:1] in b'{[' and _lines(data, rng)
  if line and rng.random() < 0.6:
    return line
  if rng.random() < 0.7:
    try:
      return _json(data, rng)
    except (ValueError, RecursionError):
      pass
    if data[8:9] == b'{' and rng.random() < 0.8:  # safetensors
      return _header(data, rng)
  return _bytes(data, rng)


def _lines(data: bytes, rng: random.Random) -> tuple[str, bytes] | None:
  """Damage to one of several lines, if the file is JSON Lines."""
  lines = data.split(b'\n')
  i = rng.randrange(len(lines))
  try:
    json.loads(lines[0])
    what, lines[i] = _json(lines[i], rng)
  except ValueError:
    return None
  return f'line {i}: {what}', b'\n'.join(lines)


def _header(data: bytes, rng: random.Random) -> tuple[str, bytes]:
  """Damage to the JSON header of a safetensors file; its length fits."""
  length = int.from_bytes(data[:8], 'little')
  try:
    what, text = _json(data[8 : 8 + length], rng)
  except ValueError:
    return _bytes(data, rng)
  return f'header: {what}', len(text).to_bytes(8, 'little') + text + (
    data[8 + length :]
  )


def _json(data: bytes, rng: random.Random) -> tuple[str, bytes]:
  root = json.loads(data)
  places = list(_places(root))
  if not places:
    raise ValueError
  container, key = rng.choice(places)
  kind = rng.choice(['value', 'value', 'value', 'near', 'drop', 'swap', 'raw'])
  what = f'{kind} {key!r}'
  if kind == 'value':
    value = rng.choice(VALUES)
    what += f' = {str(value)[:40]!r}'
    container[key] = value
  elif kind == 'near':
    value = container[key]
    if isinstance(value, int | float):
      container[key] = rng.choice([value + 1, -value, value * 2, value - 1])
    elif isinstance(value, str):
      container[key] = rng.choice([value + value, value[1:], value.upper()])
    else:
      container[key] = [value]
  elif kind == 'drop':
    del container[key]
  elif kind == 'swap':
    other, at = rng.choice(places)
    container[key], other[at] = other[at], container[key]
    what += f' with {at!r}'
  text = json.dumps(root)
  if kind == 'raw':
    text = _raw(text, rng)
  return what, text.encode()


def _raw(text: str, rng: random.Random) -> str:
  """Damage that json.dumps cannot write."""
  return rng.choice(
    [
      text + text,
      text.replace('{', '{"a": 1, "a": 2, ', 1),
      text.replace(': ', ': ' + '[' * 100_000, 1),
      text.replace(': ', ': {"a": ' * 5000, 1),
      text.replace(': ', ': ' + '7' * 5000 + ', "n": ', 1),
      '\ufeff' + text,
      text.replace('"', "'"),
      text[: len(text) // 2],
      '[' + text + ']',
    ]
  )


def _places(value):
  """Every (container, key) in a JSON value."""
  items = ()
  if isinstance(value, dict):
    items = list(value.items())
  elif isinstance(value, list):
    items = list(enumerate(value))
    items = items[:20] + items[-20:]
  for key, child in items:
    yield value, key
    yield from _places(child)


def _bytes(data: bytes, rng: random.Random) -> tuple[str, bytes]:
  n = len(data)
  at = rng.randrange(n + 1)
  size = rng.choice([1, 2, 4, 8, 64, max(n // 4, 1)])
  kind = rng.choice(
    'cut flip flip noise drop double zeros swap append number number'.split()
  )
  what = f'{kind} at {at} of {n}'
  if kind == 'cut':
    return what, data[:at]
  if kind == 'flip' and n:
    at %= n
    out = bytearray(data)
    out[at] ^= 1 << rng.randrange(8)
    return f'flip at {at} of {n}', bytes(out)
  if kind == 'noise':
    return what, data[:at] + rng.randbytes(size) + data[at + size :]
  if kind == 'drop':
    return what, data[:at] + data[at + size :]
  if kind == 'double':
    return what, data[:at] + data[at : at + size] + data[at:]
  if kind == 'zeros':
    return what, data[:at] + b'\0' * size + data[at + size :]
  if kind == 'swap':
    piece = data[at : at + size]
    return what, piece + data[len(piece) : at] + data[:size] + data[at + size :]
  if kind == 'append':
    return what, data + rng.randbytes(size)
  width = rng.choice([1, 2, 4, 8])
  number = rng.choice(EXTREME) % 256**width
  at = rng.choice([at, rng.randrange(min(n, 64) + 1)])
  packed = number.to_bytes(width, 'little')
  return f'{number} at {at} of {n}', data[:at] + packed + data[at + width :]
