"""launch.bench.decode --model: a GGUF file beside llama.cpp."""

import json
import sys

import pytest

from gpt.formats.gguf import write_gguf
from gpt.formats.gguf.vocabulary import tokenizer_keys
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


def test_a_missing_model_is_one_clear_line():
  _, err = launch('bench.decode', '--model=no-such.gguf', code=2)
  assert 'no-such.gguf' in err
