"""What the processor can do, from what the system says about it."""

import pytest

from gpt import processor

EPYC = """processor\t: 0
model name\t: AMD EPYC
flags\t\t: fpu avx2 avx512f avx512_bf16

processor\t: 1
model name\t: AMD EPYC
flags\t\t: fpu avx2 avx512f avx512_bf16
"""
GRAVITON = """processor\t: 0
BogoMIPS\t: 2100.00
Features\t: fp asimd bf16 i8mm
"""
BIG_AND_LITTLE = (
  GRAVITON
  + """
processor\t: 1
Features\t: fp asimd
"""
)


@pytest.mark.parametrize(
  'cpuinfo, name, bfloat16',
  [
    (EPYC, 'AMD EPYC', True),
    (EPYC.replace('avx512_bf16', 'amx_bf16'), 'AMD EPYC', True),
    (EPYC.replace('avx512_bf16', ''), 'AMD EPYC', False),
    (GRAVITON, 'aarch64', True),
    (BIG_AND_LITTLE, 'aarch64', False),
    ('', 'aarch64', False),
  ],
)
def test_name_and_bfloat16_are_read_from_cpuinfo(
  monkeypatch, cpuinfo, name, bfloat16
):
  found = processor.parse(cpuinfo, 'aarch64')
  assert found[0] == name
  monkeypatch.setattr(processor, 'describe', lambda: found)
  assert processor.multiplies_bfloat16() is bfloat16


@pytest.mark.parametrize(
  'value, able', [('1', True), ('0', False), ('', False)]
)
def test_an_apple_processor_is_asked_through_sysctl(monkeypatch, value, able):
  known = {
    'machdep.cpu.brand_string': 'Apple M2',
    processor.SYSCTL['bf16']: value,
  }
  monkeypatch.setattr(processor.sys, 'platform', 'darwin')
  monkeypatch.setattr(processor, '_sysctl', lambda key: known.get(key, ''))
  found = processor.describe.__wrapped__()
  assert found == ('Apple M2', {'bf16'} if able else set())


@pytest.mark.parametrize(
  'size, cpus, sharers, each',
  [
    ('32768K\n', '0-1\n', 2, 16 << 20),
    ('32768K\n', '0-7,64-71\n', 4, 8 << 20),  # Threads that idle take none.
    ('2048K\n', '0\n', 8, 2 << 20),
    ('', '0-1\n', 2, 0),
  ],
)
def test_the_share_of_a_core_in_the_l3_cache(
  size, cpus, sharers, each, tmp_path, monkeypatch
):
  (tmp_path / 'size').write_text(size)
  (tmp_path / 'shared_cpu_list').write_text(cpus)
  monkeypatch.setattr(processor, 'L3', tmp_path)
  assert processor.l3_bytes(sharers) == each


def test_a_system_without_that_says_nothing(tmp_path, monkeypatch):
  monkeypatch.setattr(processor, 'L3', tmp_path / 'absent')
  assert processor.l3_bytes(2) == 0
