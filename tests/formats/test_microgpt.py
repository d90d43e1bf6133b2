"""microgpt's directories: written as documented, read correctly.

Some are made with numpy, safetensors and tokenizers alone, and compared with a
forward pass in numpy.
"""

import json

import jax
import numpy as np
import pytest

from gpt.decoding import generation, sampling
from gpt.errors import UserError
from gpt.formats import microgpt
from gpt.formats.convert import export, import_directory
from gpt.formats.tokenizer_json import equivalent
from gpt.runs.config_file import CONFIG, read_config
from gpt.runs.load import load_model, params_sha256
from gpt.tokenizers import EOS, CharTokenizer, build_tokenizer
from gpt.tokenizers.chat_format import CHAT_TOKENS, build_prompt
from gpt.tokenizers.huggingface import HfTokenizer
from tests.support import export_tools
from tests.support.export_tools import TEXT, config, random_weights
from tests.support.workdirs import make_run

library = pytest.importorskip('safetensors.numpy')
tokenizers = pytest.importorskip('tokenizers')
bpe, chat_run = export_tools.bpe, export_tools.chat_run


def logits(loaded, ids):
  tokens = np.array([ids], np.int32)
  forward = jax.jit(loaded.model.apply)
  return np.asarray(forward({'params': loaded.params}, tokens))[0]


# --- written ----------------------------------------------------------------


def test_a_microgpt_directory_is_as_documented(chat_run, tmp_path, bpe):
  which, step, notes = export(chat_run, 'best', 'microgpt', tmp_path, 'f32')
  assert (which, step, notes) == ('best', 7, [])
  assert sorted(p.name for p in tmp_path.iterdir()) == [
    'meta.json',
    'tokenizer.json',
    'weights.safetensors',
  ]
  assert json.loads((tmp_path / 'meta.json').read_text()) == {
    'vocab_size': 320,
    'n_embd': 32,
    'n_head': 4,
    'n_layer': 2,
    'block_size': 32,
    'special_tokens': ['user', 'assistant', 'end_turn'],
  }
  shapes = {
    k: v.shape
    for k, v in library.load_file(tmp_path / 'weights.safetensors').items()
  }
  expected = {'wte': (320, 32), 'wpe': (32, 32), 'lm_head': (320, 32)}
  for i in (0, 1):
    for name in ('attn_wq', 'attn_wk', 'attn_wv', 'attn_wo'):
      expected[f'layer{i}.{name}'] = (32, 32)
    expected[f'layer{i}.mlp_fc1'] = (128, 32)
    expected[f'layer{i}.mlp_fc2'] = (32, 128)
  assert shapes == expected
  theirs = tokenizers.Tokenizer.from_file(str(tmp_path / 'tokenizer.json'))
  names = ['<bos>', '<user>', '<assistant>', '<end_turn>']
  assert [theirs.token_to_id(name) for name in names] == [0, 1, 2, 3]
  assert (tmp_path / 'tokenizer.json').read_bytes() == bpe.data


def test_microgpt_round_trip_changes_no_bit(chat_run, tmp_path):
  out, workdir = tmp_path / 'out', tmp_path / 'run'
  export(chat_run, 'best', 'microgpt', out, 'f32')
  done = import_directory(out, 'auto', config(), workdir)
  assert (done['format'], done['step'], done['chat']) == ('microgpt', 0, True)
  one, two = load_model(chat_run), load_model(workdir)
  assert params_sha256(one.params) == params_sha256(two.params)
  assert one.tokenizer.fingerprint == two.tokenizer.fingerprint
  assert two.cfg.arch == 'microgpt'
  assert two.name == 'microgpt-2L-4H-32D'
  again = tmp_path / 'again'
  export(workdir, 'best', 'microgpt', again, 'f32')
  for path in out.iterdir():
    assert path.read_bytes() == (again / path.name).read_bytes()


@pytest.mark.parametrize(
  'name, value',
  [
    ('arch', 'randy'),
    ('mlp', 'gelu'),
    ('pos', 'rope'),
    ('n_kv_head', 2),
    ('qk_norm', True),
    ('final_norm', True),
    ('logit_softcap', 9.0),
    ('tied_embeddings', True),
  ],
)
def test_models_microgpt_cannot_represent_are_refused(
  bpe, tmp_path, name, value
):
  source = tmp_path / 'run'
  make_run(source, bpe, random_weights(), **{'arch': 'microgpt', name: value})
  with pytest.raises(UserError, match=f'for microgpt: .*model.{name} is'):
    export(source, 'best', 'microgpt', tmp_path / 'out', 'f32')
  assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('kind', ['char', 'sentencepiece', 'chat char'])
def test_other_tokenizers_keep_their_probabilities(tmp_path, kind):
  """BOS and EOS become one row and ids change; probabilities do not."""
  names = CHAT_TOKENS if kind == 'chat char' else ()
  ours = build_tokenizer(kind.split()[-1], [TEXT], 400, names)
  source, out, back = (tmp_path / n for n in ('run', 'out', 'back'))
  make_run(source, ours, random_weights(), arch='microgpt')
  saved = read_config(source)
  saved['data']['format'] = 'chat' if names else 'text'
  (source / CONFIG).write_text(json.dumps(saved))
  _, _, notes = export(source, 'best', 'microgpt', out, 'f32')
  assert 'one token for the beginning and the end' in notes[0]
  import_directory(out, 'microgpt', config(), back)
  one, two = load_model(source), load_model(back)
  assert two.tokenizer.special_tokens['<|bos|>'] == 0
  assert [two.tokenizer.special_tokens[n] for n in names] == [1, 2, 3][
    : len(names)
  ]
  text = 'What is it?\n To be '
  ids = [one.tokenizer.bos_id, *one.tokenizer.encode(text)]
  new_ids = [0, *two.tokenizer.encode(text)]
  assert two.tokenizer.decode(new_ids) == text

  def probabilities(loaded, ids):
    t = loaded.tokenizer
    # Of text and of the end of a document, which is BOS in chat data.
    end = t.bos_id if names else t.eos_id
    banned = {*t.unsampleable_ids, t.bos_id, t.eos_id} - {end}
    p = np.exp(logits(loaded, ids))
    p[:, sorted(banned)] = 0
    p /= p.sum(-1, keepdims=True)
    named = {
      t.token_bytes(i): p[:, i] for i in range(t.vocab_size) if t.token_bytes(i)
    }
    return named | {EOS: p[:, end]}

  p, q = probabilities(one, ids), probabilities(two, new_ids)
  assert p.keys() == q.keys()
  for token in p:
    np.testing.assert_allclose(p[token], q[token], rtol=2e-4, atol=1e-6)


def test_a_tokenizer_json_with_an_eos_is_put_in_microgpts_order():
  """Such a tokenizer comes from importing an export re-saved elsewhere."""
  ours = HfTokenizer(equivalent(CharTokenizer('abc d\n', CHAT_TOKENS)))
  assert ours.eos_id != ours.bos_id
  order = microgpt.kept_ids(ours)
  theirs = HfTokenizer(microgpt.tokenizer_file(ours, order))
  assert theirs.vocab_size == ours.vocab_size - 1
  names = ('<|bos|>', *CHAT_TOKENS)
  assert [theirs.special_tokens[name] for name in names] == [0, 1, 2, 3]
  text = 'a bad\ncab'
  wanted = [order.index(i) for i in ours.encode(text).tolist()]
  assert theirs.encode(text).tolist() == wanted
  assert theirs.decode(wanted) == text


# --- read -------------------------------------------------------------------


@pytest.fixture(scope='module')
def by_hand(tmp_path_factory):
  """(directory, tensors) of a microgpt model, made without our code."""
  directory = tmp_path_factory.mktemp('by-hand') / 'model'
  directory.mkdir()
  t = tokenizers.Tokenizer(tokenizers.models.BPE())
  t.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  t.decoder = tokenizers.decoders.ByteLevel()
  names = ['<bos>', '<user>', '<assistant>', '<end_turn>']
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=200,
    show_progress=False,
    special_tokens=[tokenizers.AddedToken(n, special=True) for n in names],
  )
  t.train_from_iterator(TEXT.splitlines(), trainer)
  t.save(str(directory / 'tokenizer.json'))
  V, T, D, N = t.get_vocab_size(), 24, 24, 3
  rng = np.random.default_rng(5)
  shapes = {'wte': (V, D), 'wpe': (T, D), 'lm_head': (V, D)}
  for i in range(N):
    shapes |= {f'layer{i}.attn_{w}': (D, D) for w in ('wq', 'wk', 'wv', 'wo')}
    shapes |= {f'layer{i}.mlp_fc1': (4 * D, D), f'layer{i}.mlp_fc2': (D, 4 * D)}
  tensors = {
    name: rng.normal(0, 0.3, shape).astype(np.float32)
    for name, shape in shapes.items()
  }
  library.save_file(tensors, directory / 'weights.safetensors')
  meta = {
    'vocab_size': V,
    'n_embd': D,
    'n_head': 4,
    'n_layer': N,
    'block_size': T,
    'special_tokens': ['user', 'assistant', 'end_turn'],
  }
  (directory / 'meta.json').write_text(json.dumps(meta))
  return directory, tensors


def numpy_logits(tensors, ids, n_head):
  """microgpt's forward pass in float64, token by token."""
  w = {name: x.astype(np.float64) for name, x in tensors.items()}

  def rms(x):
    return x / np.sqrt((x * x).mean() + 1e-5)

  D = w['wte'].shape[1]
  K, layers = D // n_head, sum(n.endswith('attn_wq') for n in w)
  keys, values = [[] for _ in range(layers)], [[] for _ in range(layers)]
  rows = []
  for position, token in enumerate(ids):
    x = rms(w['wte'][token] + w['wpe'][position])
    for i in range(layers):
      h = rms(x)
      q = w[f'layer{i}.attn_wq'] @ h
      keys[i].append(w[f'layer{i}.attn_wk'] @ h)
      values[i].append(w[f'layer{i}.attn_wv'] @ h)
      out = np.zeros(D)
      for head in range(n_head):
        part = slice(head * K, head * K + K)
        scores = np.array([q[part] @ k[part] for k in keys[i]]) / np.sqrt(K)
        scores = np.exp(scores - scores.max())
        scores /= scores.sum()
        out[part] = sum(s * v[part] for s, v in zip(scores, values[i]))
      x = x + w[f'layer{i}.attn_wo'] @ out
      hidden = np.maximum(w[f'layer{i}.mlp_fc1'] @ rms(x), 0)
      x = x + w[f'layer{i}.mlp_fc2'] @ hidden
    rows.append(w['lm_head'] @ x)
  return np.array(rows)


def test_a_directory_made_by_hand_gives_the_numpy_logits(by_hand, tmp_path):
  directory, tensors = by_hand
  import_directory(directory, 'auto', config(), tmp_path / 'run')
  loaded = load_model(tmp_path / 'run')
  ids = [0, *loaded.tokenizer.encode('To be, or not to be')]
  wanted = numpy_logits(tensors, ids, n_head=4)
  np.testing.assert_allclose(
    logits(loaded, ids), wanted, atol=1e-4 * np.abs(wanted).max()
  )


def test_a_directory_made_by_hand_generates_and_chats(by_hand, tmp_path):
  directory, tensors = by_hand
  import_directory(directory, 'microgpt', config(), tmp_path / 'run')
  loaded = load_model(tmp_path / 'run')
  said = [{'role': 'user', 'content': 'To be?'}]
  prompt, _ = build_prompt(said, loaded.tokenizer, 20)
  text = loaded.tokenizer.encode('To be?').tolist()
  assert prompt == [0, 1, *text, 3, 2]
  n = 24 - len(prompt)
  new = []
  for _, some in generation.generate(
    loaded.model,
    loaded.params,
    [prompt],
    sampling.settings(1, temperature=0.0),
    n,
    bias_V=generation.ban_bias(loaded.tokenizer),
  ):
    new += some or []
  # The likeliest token each time; <user> and so on cannot be sampled.
  ids = list(prompt)
  for _ in range(n):
    last = numpy_logits(tensors, ids, n_head=4)[-1]
    last[[1, 2, 3]] = -np.inf
    ids.append(int(last.argmax()))
  assert new == ids[len(prompt) :]
  assert len(set(new)) > 3


def test_a_half_precision_directory_is_read(by_hand, tmp_path):
  directory, tensors = by_hand
  half = {name: x.astype(np.float16) for name, x in tensors.items()}
  for name in ('meta.json', 'tokenizer.json'):
    (tmp_path / name).write_bytes((directory / name).read_bytes())
  library.save_file(half, tmp_path / 'weights.safetensors')
  read = microgpt.read_microgpt(tmp_path)
  np.testing.assert_array_equal(
    read.params['block_2']['fc2'], half['layer2.mlp_fc2'].T.astype('float32')
  )


@pytest.mark.parametrize(
  'change, message',
  [
    ({'n_head': 5}, 'n_embd 24 is not divisible by n_head 5'),
    ({'n_layer': 4}, 'layer3.attn_wk is missing: expected'),
    ({'n_layer': 2}, 'unexpected tensor layer2.attn_wk'),
    (
      {'block_size': 25},
      r'wpe: expected \(25, 24\) from the config, found \(24, 24\)',
    ),
    ({'n_embd': '24'}, "n_embd is '24'; allowed: a whole number"),
    ({'special_tokens': ['user', 'tool']}, "the special token 'tool'"),
  ],
)
def test_contradictory_microgpt_files_are_refused(
  by_hand, tmp_path, change, message
):
  directory, _ = by_hand
  bad = tmp_path / 'bad'
  bad.mkdir()
  for path in directory.iterdir():
    (bad / path.name).write_bytes(path.read_bytes())
  meta = json.loads((bad / 'meta.json').read_text()) | change
  (bad / 'meta.json').write_text(json.dumps(meta))
  with pytest.raises(UserError, match=message):
    import_directory(bad, 'auto', config(), tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_missing_files_are_named(by_hand, tmp_path):
  directory, _ = by_hand
  bad = tmp_path / 'bad'
  bad.mkdir()
  with pytest.raises(UserError, match='holds no model that can be read'):
    import_directory(bad, 'auto', config(), tmp_path / 'run')
  with pytest.raises(UserError, match='there is no'):
    import_directory(tmp_path / 'none', 'auto', config(), tmp_path / 'run')
  for name in ('meta.json', 'weights.safetensors', 'tokenizer.json'):
    with pytest.raises(UserError, match=f'cannot read .*{name}'):
      import_directory(bad, 'microgpt', config(), tmp_path / 'run')
    (bad / name).write_bytes((directory / name).read_bytes())
  (bad / 'meta.json').write_text('[1')
  with pytest.raises(UserError, match='is not JSON'):
    import_directory(bad, 'auto', config(), tmp_path / 'run')
