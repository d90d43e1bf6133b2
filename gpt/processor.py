"""The processor this process runs on: its name and its instructions.

Imports no JAX.
"""

import functools
import pathlib
import platform
import re
import subprocess
import sys

# Instructions that multiply bfloat16, as Linux names them: x86's vectors and
# tiles, and Arm's.
BFLOAT16 = ('avx512_bf16', 'amx_bf16', 'bf16')
# macOS: a key of sysctl for each instruction that anything here asks about.
SYSCTL = {
  'bf16': 'hw.optional.arm.FEAT_BF16',
  'i8mm': 'hw.optional.arm.FEAT_I8MM',
  'asimddp': 'hw.optional.arm.FEAT_DotProd',
  'asimdhp': 'hw.optional.arm.FEAT_FP16',
  'sme': 'hw.optional.arm.FEAT_SME',
}
# What Linux says of the first core's L3 cache.
L3 = pathlib.Path('/sys/devices/system/cpu/cpu0/cache/index3')


@functools.cache
def describe() -> tuple[str, frozenset[str]]:
  """(name, flags): all instructions on Linux, those of SYSCTL on macOS."""
  name = platform.processor() or platform.machine()
  if sys.platform == 'darwin':
    flags = {flag for flag, key in SYSCTL.items() if _sysctl(key) == '1'}
    return _sysctl('machdep.cpu.brand_string') or name, frozenset(flags)
  try:
    with open('/proc/cpuinfo') as file:
      return parse(file.read(), name)
  except OSError:
    return name, frozenset()


def parse(cpuinfo: str, name: str) -> tuple[str, frozenset[str]]:
  """`describe` from the text of /proc/cpuinfo; `name` if it has none.

  Only what all cores have counts: big and little ones may differ.
  """
  found: list[set[str]] = []
  for line in cpuinfo.splitlines():
    key, _, value = line.partition(':')
    if key.strip() == 'model name':
      name = value.strip()
    elif key.strip() in ('flags', 'Features'):
      found.append(set(value.split()))
  return name, frozenset(set.intersection(*found) if found else ())


def multiplies_bfloat16() -> bool:
  """Whether it has instructions for products of bfloat16 numbers."""
  return not describe()[1].isdisjoint(BFLOAT16)


def l3_bytes(sharers: int) -> int:
  """Bytes of the L3 cache for each of some busy cores; 0 if unknown."""
  try:
    size = (L3 / 'size').read_text().strip()
    cores = _count((L3 / 'shared_cpu_list').read_text())
  except OSError:
    return 0
  if not re.fullmatch(r'\d+K', size):
    return 0
  return int(size[:-1]) * 1024 // max(1, min(cores, sharers))


def _count(cpus: str) -> int:
  """The number of CPUs in a list such as 0-3,8."""
  pairs = (part.split('-') for part in cpus.strip().split(',') if part)
  return sum(int(pair[-1]) - int(pair[0]) + 1 for pair in pairs)


def _sysctl(key: str) -> str:
  """A value of macOS's sysctl; '' if it has none."""
  command = ['sysctl', '-n', key]
  try:
    done = subprocess.run(command, capture_output=True, text=True)
  except OSError:
    return ''
  return done.stdout.strip()
