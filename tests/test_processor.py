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
