"""launch.bench.decode --model: a GGUF file beside llama.cpp."""

import json
import pathlib
import sys

import pytest

from gpt.formats.gguf import write_gguf
from gpt.formats.gguf.vocabulary import tokenizer_keys
from launch.bench import gguf_shape, machine
from launch.bench.peers import llama_cpp
from launch.bench.shapes import PRESETS
from tests.support.gguf_models import model, small_bpe
from tests.support.workdirs import launch

# Stands in for llama-bench: checks its arguments and knows its own speed.
FAKE = """#!{python}
import json, sys
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
assert open(flags['-m'], 'rb').read(4) == b'GGUF'
assert (flags['-n'], flags['-p'], flags['-o']) == ('8', '0', 'json')
print(json.dumps([{{'avg_ts': 100.0 * int(flags['-t'])}}]))
"""


@pytest.mark.slow
def test_a_binary_is_compared_at_equal_precision(tmp_path, monkeypatch):
  binary, gguf = tmp_path / 'llama-bench', tmp_path / 'm.gguf'
  binary.write_text(FAKE.format(python=sys.executable))
  binary.chmod(0o755)
  tokenizer = small_bpe()
  cfg, params = model('llama', tokenizer.vocab_size)
  write_gguf(gguf, cfg, params, tokenizer_keys(tokenizer), 'q8_0', 'test')
  monkeypatch.setenv('LLAMA_CPP', str(binary))
  out, _ = launch('bench.decode', f'--model={gguf}', '--tokens=8', '--rounds=1')
  line = json.loads(out.splitlines()[-1])
  speed = {name: row['tokens_per_s'] for name, row in line['rows'].items()}
  assert speed['llama.cpp f32 threads=1'] == 100
  best = max(v for k, v in speed.items() if k.startswith('llama.cpp bf16'))
  assert line['ratios'] == {
    'ours float32 / llama.cpp f32': speed['ours float32 B=1'] / best,
    'ours bfloat16 / llama.cpp bf16': speed['ours bfloat16 B=1'] / best,
    'ours: weights in bfloat16 / in float32': speed['ours bfloat16 B=1']
    / speed['ours float32 B=1'],
  }
  assert 'ours float32 / llama.cpp f32:' in out


@pytest.mark.slow
def test_a_preset_is_compared_on_weights_that_llama_cpp_reads(
  tmp_path, monkeypatch
):
  binary = tmp_path / 'llama-bench'
  binary.write_text(FAKE.format(python=sys.executable))
  binary.chmod(0o755)
  monkeypatch.setenv('LLAMA_CPP', str(tmp_path))
  flags = ('--preset=xs', '--vocab_size=20', '--tokens=8', '--rounds=1')
  out, _ = launch('bench.decode', *flags, '--batch=1', '--peer=llama')
  line = json.loads(out.splitlines()[-1])
  rows = line['rows']
  threads = [row['threads'] for k, row in rows.items() if k.startswith('llama')]
  assert threads == sorted({1, line['machine']['cores']})
  (ratio,) = line['ratios'].values()
  mine = rows['ours as GGUF B=1']['tokens_per_s']
  assert ratio == mine / (100 * max(threads))
  # A shape of its own: not mixed with the preset's.
  assert 'ratio' not in line


def test_every_preset_has_a_shape_that_gguf_holds():
  options = {p: gguf_shape.choose_options(p, 100) for p in PRESETS}
  assert all(o in gguf_shape.OPTIONS for o in options.values())
  assert options['l']['pos'] == 'rope'


@pytest.mark.parametrize('given', ['llama-bench', 'llama-server', ''])
def test_programs_of_llama_cpp_are_found_beside_each_other(
  tmp_path, monkeypatch, given
):
  monkeypatch.setenv('LLAMA_CPP', str(tmp_path / given))
  found = llama_cpp.find_binary('llama-server')
  assert found == str(tmp_path / 'llama-server')


def test_every_benchmark_that_ends_with_a_json_line_names_the_machine():
  folder = pathlib.Path(machine.__file__).parent
  ends = {p.stem: p.read_text() for p in folder.glob('*.py')}
  ends = {k: text for k, text in ends.items() if 'print(json.dumps' in text}
  # One fits a table of runs, one plans for other machines: nothing in their
  # lines depends on a speed of this one.
  assert {k for k, text in ends.items() if 'machine.facts()' not in text} <= {
    'law_fit',
    'cluster',
  }
  assert 'harness' in ends


def test_the_machine_is_part_of_the_json_line():
  facts = json.loads(json.dumps(machine.facts()))
  assert facts['cpu'] and facts['cores'] >= 1
  assert set(facts['cpu_flags']) <= set(machine.FLAGS)
  assert facts['cpu'] in machine.line()


def test_a_missing_model_is_one_clear_line():
  _, err = launch('bench.decode', '--model=no-such.gguf', code=2)
  assert 'no-such.gguf' in err
