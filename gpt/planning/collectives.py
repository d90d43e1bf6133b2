"""Communication of a compiled program, read from its HLO.

Bytes are what one device sends in a ring (Thakur et al. 2005, "Optimization of
Collective Communication Operations in MPICH"), n the devices of a group and S
the bytes of the whole array:

  all-reduce 2 S (n - 1) / n;  all-gather, reduce-scatter, all-to-all
  S (n - 1) / n;  collective-permute S
"""

import dataclasses
import math
import re
from collections.abc import Iterator

import numpy as np

BYTES = {'pred': 1, 's8': 1, 'u8': 1, 's16': 2, 'u16': 2, 'bf16': 2, 'f16': 2}
BYTES |= {'s32': 4, 'u32': 4, 'f32': 4, 's64': 8, 'u64': 8, 'f64': 8}
KINDS = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all')
KINDS += ('collective-permute',)
_INSTRUCTION = re.compile(rf'= (.*?) ({"|".join(KINDS)})(?:-start)?\((.*)$')
_SHAPE = re.compile(r'\b([a-z]\w*)\[([\d,]*)\]')
_COMPUTATION = re.compile(r'^(?:ENTRY )?%?([\w.\-]+) .*\{$')
_CALLED = re.compile(
  r'(?:body|to_apply|calls|condition|branch_computations)=\{?%?([\w.\-]+)'
)
_NAME = re.compile(r'%[\w.\-]+')
_PASSES_ON = re.compile(r' (convert|bitcast|copy|reshape|transpose)\(')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective operation of a program.

  Attributes:
    kind: one of KINDS.
    sent: bytes that a device sends, over all `times`.
    group: the numbers of the devices of the first group.
    times: how often a step runs it.
  """

  kind: str
  sent: float
  group: tuple[int, ...]
  times: int


def read(hlo: str, devices: int) -> list[Collective]:
  """The collectives of a program, those in loops as often as they run.

  A sum of which a device keeps only its slice counts as a reduce-scatter, into
  which XLA turns it on GPUs and TPUs.

  Args:
    hlo: text of the compiled program. devices: that it runs on.
  """
  program = _Program(hlo)
  found = []
  for name, line, times in program.lines(program.entry, 1):
    match = _INSTRUCTION.search(line)
    if not match:
      continue
    shape, kind, rest = match.groups()
    group = _group(kind, rest, devices)
    n = len(group)
    if n == 1:
      continue
    sizes = {kind: _size(shape)}
    if '-start(' in line and kind == 'all-gather':
      sizes[kind] *= n / (n + 1)  # The shapes of operand and result.
    if kind == 'reduce-scatter':
      sizes[kind] *= n
    elif kind == 'all-reduce':
      sliced = program.sliced_bytes(name, line)
      sizes = {'reduce-scatter': sliced, kind: sizes[kind] - sliced}
    if '_promoted' in line:  # XLA:CPU sums bfloat16 as float32.
      sizes = {kind: size / 2 for kind, size in sizes.items()}
    for kind, size in sizes.items():
      if size:
        factor = 2 if kind == 'all-reduce' else 1
        share = 1 if kind == 'collective-permute' else (n - 1) / n
        sent = factor * share * size * times
        found.append(Collective(kind, sent, group, times))
  return found


class _Program:
  """The computations of an HLO text.

  Attributes:
    entry: name of the one that runs.
  """

  def __init__(self, hlo: str) -> None:
    self.entry, name = '', ''
    self._bodies: dict[str, list[str]] = {}
    for line in hlo.splitlines():
      if not line.startswith(' '):
        match = _COMPUTATION.match(line)
        name = match[1] if match else ''
        if match and line.startswith('ENTRY'):
          self.entry = name
      elif name:
        self._bodies.setdefault(name, []).append(line)

  def lines(self, name: str, times: int) -> Iterator[tuple[str, str, int]]:
    """(computation, line, how often it runs), of those it calls as well."""
    for line in self._bodies.get(name, ()):
      yield name, line, times
      trips = _TRIPS.search(line) if ' while(' in line else None
      for called in _CALLED.findall(line):
        if called != name:
          inner = times * (int(trips[1]) if trips else 1)
          yield from self.lines(called, inner)

  def sliced_bytes(self, name: str, line: str) -> float:
    """Bytes of the results of an all-reduce of which only a slice is used."""
    value = _defined(line)
    elements = [
      user for user in self._users(name, value) if ' get-tuple-element(' in user
    ] or [line]
    return sum(
      _size(element.partition('= ')[2].split(' ')[0])
      for element in elements
      if self._is_sliced(name, _defined(element))
    )

  def _is_sliced(self, name: str, value: str) -> bool:
    """Whether all that is used of a value is a slice."""
    users = self._users(name, value)
    return bool(users) and all(self._slices(name, x, value) for x in users)

  def _slices(self, name: str, user: str, value: str) -> bool:
    if ' dynamic-slice(' in user:
      return True
    called = _CALLED.findall(user)
    if ' fusion(' in user and called:
      operands = _NAME.findall(user.partition(' fusion(')[2].partition(')')[0])
      inner = [
        line
        for line in self._bodies[called[0]]
        for i, operand in enumerate(operands)
        if operand == value and f' parameter({i})' in line
      ]
      if all(self._is_sliced(called[0], _defined(x)) for x in inner):
        return True
      if len(self._bodies[called[0]]) > 2:  # Not a mere conversion.
        return False
    elif not _PASSES_ON.search(user):
      return False
    return self._is_sliced(name, _defined(user))

  def _users(self, name: str, value: str) -> list[str]:
    uses = re.compile(re.escape(value) + r'(?![\w.\-])')
    return [
      line
      for line in self._bodies[name]
      if uses.search(line.partition('= ')[2])
    ]


def _defined(line: str) -> str:
  """'%all-reduce.1' of an instruction."""
  return line.split('=')[0].strip().removeprefix('ROOT ')


def _size(shape: str) -> float:
  """Bytes of a shape as HLO writes it, of a tuple the sum."""
  return sum(
    BYTES.get(dtype, 4) * math.prod(int(d) for d in dims.split(',') if d)
    for dtype, dims in _SHAPE.findall(re.sub(r'/\*.*?\*/', '', shape))
  )


def _group(kind: str, rest: str, devices: int) -> tuple[int, ...]:
  """The first group of devices of an instruction."""
  if kind == 'collective-permute':
    return 0, 1
  mesh = re.search(r'replica_groups=mesh\[(.*?)\] \{(.*?)\}', rest)
  if mesh:
    axes = re.findall(r"'(\w+)'=(\d+)", mesh[1])
    names = [name for name, _ in axes]
    grid = np.arange(devices).reshape([int(n) for _, n in axes])
    inner = [names.index(x) for x in re.findall(r"'(\w+)'", mesh[2])]
    first = [slice(None) if i in inner else 0 for i in range(grid.ndim)]
    return tuple(grid[tuple(first)].ravel().tolist())
  iota = re.search(
    r'replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', rest
  )
  if iota:
    dims = [int(d) for d in iota[3].split(',')]
    grid = np.arange(math.prod(dims)).reshape(dims)
    if iota[4]:
      grid = grid.transpose([int(d) for d in iota[4].split(',')])
    return tuple(grid.reshape(int(iota[1]), int(iota[2]))[0].tolist())
  listed = re.search(r'replica_groups=\{\{([\d,]+)\}', rest)
  if listed:
    return tuple(int(d) for d in listed[1].split(','))
  return tuple(range(devices))
