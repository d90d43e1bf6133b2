"""Models taken elsewhere and brought back: names, shapes, numbers, ids.

microgpt directories are made by hand here too, with numpy, safetensors and
tokenizers alone, and judged by a forward pass in numpy.
"""

import json
import pathlib

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from workdirs import launch, make_run

from gpt import (
  generation,
  hf_directory,
  interop,
  model_card,
  run,
  safetensors_file,
  sampling,
)
from gpt.chat import CHAT_TOKENS, build_prompt
from gpt.errors import UserError
from gpt.hf_json import equivalent, vocabulary
from gpt.interop_run import export, import_directory
from gpt.load import load_model, params_sha256
from gpt.sample_text import sample_text
from gpt.tokenizer import (
  EOS,
  CharTokenizer,
  RandyTokenizer,
  build_tokenizer,
)
from gpt.tokenizer_hf import HfTokenizer
from gpt.train import train_and_evaluate
from launch import cli

library = pytest.importorskip('safetensors.numpy')
tokenizers = pytest.importorskip('tokenizers')
TEXT = sample_text()[:30_000]
OPTIONS = {
  'mlp': 'swiglu', 'pos': 'rope', 'n_kv_head': 2, 'qk_norm': True,
  'final_norm': True, 'logit_softcap': 15.0, 'tied_embeddings': True,
}


def random_weights(seed=0, scale=0.3):
  rng = np.random.default_rng(seed)
  return lambda name, shape: rng.normal(0, scale, shape)


@pytest.fixture(scope='module')
def bpe():
  return build_tokenizer('hf', [TEXT], 320, CHAT_TOKENS)


@pytest.fixture(scope='module')
def chat_run(tmp_path_factory, bpe):
  """A microgpt model with a chat tokenizer and random weights."""
  workdir = tmp_path_factory.mktemp('runs') / 'chat'
  make_run(workdir, bpe, random_weights(), arch='microgpt')
  return workdir


@pytest.fixture
def no_sample(monkeypatch):
  """Model cards without a sample: it takes seconds to compile."""
  monkeypatch.setattr(model_card, 'sample', lambda loaded: ('', ''))


def logits(loaded, ids):
  tokens = np.array([ids], np.int32)
  forward = jax.jit(loaded.model.apply)
  return np.asarray(forward({'params': loaded.params}, tokens))[0]


def config():
  return cli.load_config('configs/default.py')


# --- safetensors --------------------------------------------------------------


@pytest.mark.parametrize('dtype', ['f32', 'f16', 'bf16'])
def test_the_library_reads_our_files(tmp_path, dtype):
  tensors = {
    'a.b': np.arange(6, dtype=np.float32).reshape(2, 3) / 3,
    'empty': np.zeros((0, 4), np.float32),
    'scalar': np.array(-0.1, np.float32),
  }
  path = tmp_path / 'x.safetensors'
  size = safetensors_file.write(path, tensors, dtype, {'k': 'v "é"'})
  assert size == path.stat().st_size
  rounded = safetensors_file.round_to(tensors, dtype)
  theirs = library.load_file(path)
  for name, x in rounded.items():
    np.testing.assert_array_equal(theirs[name].astype(np.float32), x)
    assert theirs[name].dtype.itemsize == {'f32': 4}.get(dtype, 2)
  ours, metadata = safetensors_file.read(path)
  assert metadata == {'k': 'v "é"'}
  for name, x in rounded.items():
    np.testing.assert_array_equal(ours[name], x.astype(np.float32))


def test_we_read_the_librarys_files(tmp_path):
  rng = np.random.default_rng(0)
  tensors = {
    f't{i}': rng.normal(size=(3, i)).astype(kind)
    for i, kind in enumerate(['float16', 'float32', 'float64'], start=1)
  }
  library.save_file(tensors, tmp_path / 'x.safetensors', {'from': 'them'})
  ours, metadata = safetensors_file.read(tmp_path / 'x.safetensors')
  assert metadata == {'from': 'them'}
  for name, x in tensors.items():
    np.testing.assert_array_equal(ours[name], x.astype(np.float32))


def test_damaged_files_are_refused(tmp_path):
  path = tmp_path / 'x.safetensors'
  safetensors_file.write(path, {'a': np.ones((4, 4), np.float32)}, 'f32')
  whole = path.read_bytes()
  for damaged in (b'', whole[:7], whole[:40], whole[:-1], b'\xff' * 64,
                  whole.replace(b'[4,4]', b'[4,5]')):
    path.write_bytes(damaged)
    with pytest.raises(UserError, match='not a whole safetensors file'):
      safetensors_file.read(path)
  library.save_file({'a': np.ones(2, np.int32)}, path)
  with pytest.raises(UserError, match='a is I32'):
    safetensors_file.read(path)


def test_numbers_too_large_for_half_precision_are_refused(tmp_path):
  tensors = {'wte': np.array([[1e5]], np.float32)}
  with pytest.raises(UserError, match='wte holds 1e.05, too large for f16'):
    safetensors_file.write(tmp_path / 'x', tensors, 'f16')
  assert not (tmp_path / 'x').exists()
  safetensors_file.write(tmp_path / 'x', tensors, 'bf16')


def test_one_file_of_tensors(chat_run, tmp_path):
  path = tmp_path / 'model.safetensors'
  export(chat_run, 'best', 'safetensors', path, 'f32')
  tensors = library.load_file(path)
  params = load_model(chat_run).params
  np.testing.assert_array_equal(
    tensors['layer1.mlp_fc1'], params['block_1']['fc1'].T
  )
  np.testing.assert_array_equal(tensors['lm_head'], params['lm_head'])
  with pytest.raises(UserError, match='is a directory'):
    export(chat_run, 'best', 'safetensors', tmp_path, 'f32')


# --- microgpt: written -------------------------------------------------------


def test_a_microgpt_directory_is_as_documented(chat_run, tmp_path, bpe):
  which, step, notes = export(chat_run, 'best', 'microgpt', tmp_path, 'f32')
  assert (which, step, notes) == ('best', 7, [])
  assert sorted(p.name for p in tmp_path.iterdir()) == [
    'meta.json', 'tokenizer.json', 'weights.safetensors'
  ]
  assert json.loads((tmp_path / 'meta.json').read_text()) == {
    'vocab_size': 320, 'n_embd': 32, 'n_head': 4, 'n_layer': 2,
    'block_size': 32, 'special_tokens': ['user', 'assistant', 'end_turn'],
  }
  shapes = {k: v.shape for k, v in
            library.load_file(tmp_path / 'weights.safetensors').items()}
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
  again = tmp_path / 'again'
  export(workdir, 'best', 'microgpt', again, 'f32')
  for path in out.iterdir():
    assert path.read_bytes() == (again / path.name).read_bytes()


@pytest.mark.parametrize(
  'name, value',
  [('arch', 'randy'), ('mlp', 'gelu'), ('pos', 'rope'), ('n_kv_head', 2),
   ('qk_norm', True), ('final_norm', True), ('logit_softcap', 9.0),
   ('tied_embeddings', True)],
)
def test_models_microgpt_has_not_are_refused(bpe, tmp_path, name, value):
  source = tmp_path / 'run'
  make_run(source, bpe, random_weights(), **{'arch': 'microgpt', name: value})
  with pytest.raises(UserError, match=f'for microgpt: .*model.{name} is'):
    export(source, 'best', 'microgpt', tmp_path / 'out', 'f32')
  assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('kind', ['char', 'sentencepiece', 'chat char'])
def test_other_tokenizers_keep_their_probabilities(tmp_path, kind):
  """BOS and EOS become one row, ids move; what can be sampled does not."""
  names = CHAT_TOKENS if kind == 'chat char' else ()
  ours = build_tokenizer(kind.split()[-1], [TEXT], 400, names)
  source, out, back = (tmp_path / n for n in ('run', 'out', 'back'))
  make_run(source, ours, random_weights(), arch='microgpt')
  saved = run.read_config(source)
  saved['data']['format'] = 'chat' if names else 'text'
  (source / run.CONFIG).write_text(json.dumps(saved))
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
    named = {t.token_bytes(i): p[:, i] for i in range(t.vocab_size)
             if t.token_bytes(i)}
    return named | {EOS: p[:, end]}

  p, q = probabilities(one, ids), probabilities(two, new_ids)
  assert p.keys() == q.keys()
  for token in p:
    np.testing.assert_allclose(p[token], q[token], rtol=2e-4, atol=1e-6)


# --- microgpt: read ----------------------------------------------------------


@pytest.fixture(scope='module')
def by_hand(tmp_path_factory):
  """(directory, tensors) of a microgpt model that our code had no part in."""
  directory = tmp_path_factory.mktemp('by-hand') / 'model'
  directory.mkdir()
  t = tokenizers.Tokenizer(tokenizers.models.BPE())
  t.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  t.decoder = tokenizers.decoders.ByteLevel()
  names = ['<bos>', '<user>', '<assistant>', '<end_turn>']
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=200, show_progress=False,
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
    'vocab_size': V, 'n_embd': D, 'n_head': 4, 'n_layer': N, 'block_size': T,
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
    loaded.model, loaded.params, [prompt], sampling.params(1, temperature=0.0),
    n, bias_V=generation.ban_bias(loaded.tokenizer),
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
  read = interop.read_microgpt(tmp_path)
  np.testing.assert_array_equal(
    read.params['block_2']['fc2'], half['layer2.mlp_fc2'].T.astype('float32')
  )


@pytest.mark.parametrize(
  'change, message',
  [
    ({'n_head': 5}, 'n_embd 24 is not divisible by n_head 5'),
    ({'n_layer': 4}, 'layer3.attn_wk is not there'),
    ({'n_layer': 2}, 'layer2.attn_wk is .*no tensor of this model'),
    ({'block_size': 25}, r'wpe is \(24, 24\), by the config it is \(25, 24\)'),
    ({'n_embd': '24'}, "n_embd is '24'; a whole number"),
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


def test_files_that_are_missing_are_named(by_hand, tmp_path):
  directory, _ = by_hand
  bad = tmp_path / 'bad'
  bad.mkdir()
  with pytest.raises(UserError, match='neither a microgpt directory'):
    import_directory(bad, 'auto', config(), tmp_path / 'run')
  with pytest.raises(UserError, match='no such directory'):
    import_directory(tmp_path / 'none', 'auto', config(), tmp_path / 'run')
  for name in ('meta.json', 'weights.safetensors', 'tokenizer.json'):
    with pytest.raises(UserError, match=f'cannot read .*{name}'):
      import_directory(bad, 'microgpt', config(), tmp_path / 'run')
    (bad / name).write_bytes((directory / name).read_bytes())
  (bad / 'meta.json').write_text('[1')
  with pytest.raises(UserError, match='is not JSON'):
    import_directory(bad, 'auto', config(), tmp_path / 'run')


# --- Hugging Face -------------------------------------------------------------


@pytest.mark.parametrize('model', [{}, {'arch': 'microgpt'}, OPTIONS],
                         ids=['randy', 'microgpt', 'options'])
def test_hf_round_trip_changes_no_bit(no_sample, tmp_path, model):
  source, out, back = (tmp_path / n for n in ('run', 'out', 'back'))
  tokenizer = CharTokenizer('abcdef \n', CHAT_TOKENS)
  make_run(source, tokenizer, random_weights(), **model)
  export(source, 'best', 'hf', out, 'f32')
  done = import_directory(out, 'auto', config(), back)
  assert (done['format'], done['step'], done['chat']) == ('hf', 7, True)
  one, two = load_model(source), load_model(back)
  assert params_sha256(one.params) == params_sha256(two.params)
  assert one.tokenizer.fingerprint == two.tokenizer.fingerprint
  assert one.config == two.config and one.cfg == two.cfg
  assert two.meta['best_loss'] == one.meta['best_loss'] == 1.5
  assert two.which == 'best'


def test_a_run_without_our_tokenizer_takes_theirs(no_sample, tmp_path):
  """transformers' save_pretrained keeps tokenizer.json, not our directory."""
  source, out, back = (tmp_path / n for n in ('run', 'out', 'back'))
  make_run(source, CharTokenizer('abcdef \n'), random_weights())
  export(source, 'best', 'hf', out, 'f32')
  for path in (out / 'rgpt_tokenizer').iterdir():
    path.unlink()
  (out / 'rgpt_tokenizer').rmdir()
  import_directory(out, 'hf', config(), back)
  one, two = load_model(source).tokenizer, load_model(back).tokenizer
  assert (one.kind, two.kind) == ('char', 'hf')
  assert two.encode('bad cafe!').tolist() == one.encode('bad cafe!').tolist()


def test_other_peoples_models_are_refused(tmp_path):
  (tmp_path / 'config.json').write_text('{"model_type": "gpt2"}')
  with pytest.raises(UserError, match="a model of type 'gpt2': only"):
    import_directory(tmp_path, 'auto', config(), tmp_path / 'run')


def test_the_card_tells_data_config_numbers_and_a_sample(
  trained_workdir, tmp_path
):
  export(trained_workdir, 'best', 'hf', tmp_path, 'bf16')
  card = (tmp_path / 'README.md').read_text()
  assert card.startswith('---\nlibrary_name: transformers\n')
  loaded = load_model(trained_workdir)
  for text in (
    loaded.data['description'], 'trust_remote_code=True', '| context | 32',
    '| step | 20 of 20 |', 'nats/token', 'bits/byte', '| weights | bf16 |',
    'largest change of a logit', 'ROMEO:', 'split_special_tokens=True',
  ):
    assert text in card, text
  assert '{tokenizer_note}' not in card
  sampled = card.split('```text\n')[-1]
  assert len(sampled) > 30


def test_half_precision_error_is_measured(chat_run):
  loaded = load_model(chat_run)
  reports = [
    interop.rounding_report(loaded.cfg, loaded.params, dtype)
    for dtype in ('f32', 'f16', 'bf16')
  ]
  exact, half, brain = reports
  assert exact['max_error'] == 0 and exact['same_argmax'] == 1
  # bfloat16 has 8 bits, float16 11: about eight times the error.
  assert 0 < half['max_error'] < brain['max_error'] / 2
  assert brain['max_error'] < 0.1 * brain['max_logit']


# --- tokenizers elsewhere ----------------------------------------------------


def randy_bpe():
  chars = sorted(set('abc \n\u00e9'))
  merges = [('a', 'b'), ('ab', 'c'), ('a', 'a'), (' ', 'ab'), ('aa', 'aa'),
            ('c', '\n'), (' ab', 'abc')]
  vocab = ['<|bos|>', '<|eos|>', *chars, *(a + b for a, b in merges)]
  return RandyTokenizer(vocab, merges, CHAT_TOKENS)


@pytest.mark.parametrize('kind', ['char', 'sentencepiece', 'randygpt', 'hf'])
def test_tokenizers_give_the_same_ids_elsewhere(kind):
  ours = randy_bpe() if kind == 'randygpt' else build_tokenizer(
    kind, [TEXT], 420, CHAT_TOKENS
  )
  theirs = tokenizers.Tokenizer.from_str(equivalent(ours).decode())
  rng = np.random.default_rng(0)
  letters = np.array(list('aabbc \n\u00e9\t\u2581te1'))
  texts = [''.join(rng.choice(letters, rng.integers(40))) for _ in range(500)]
  for text in [*texts, *TEXT[:9000].splitlines(keepends=True)]:
    ids = theirs.encode(text, add_special_tokens=False).ids
    assert ids == ours.encode(text).tolist(), text
    assert theirs.decode(ids) == ours.decode(ids)
  again = HfTokenizer(equivalent(ours))
  for name in CHAT_TOKENS:
    assert again.special_tokens[name] == ours.special_tokens[name]


def test_a_tokenizer_json_with_an_eos_is_put_in_microgpts_order():
  """What an import of somebody's re-saved export brings: hf, with EOS."""
  ours = HfTokenizer(equivalent(CharTokenizer('abc d\n', CHAT_TOKENS)))
  assert ours.eos_id != ours.bos_id
  order = interop.microgpt_order(ours)
  theirs = HfTokenizer(interop.microgpt_tokenizer(ours, order))
  assert theirs.vocab_size == ours.vocab_size - 1
  names = ('<|bos|>', *CHAT_TOKENS)
  assert [theirs.special_tokens[name] for name in names] == [0, 1, 2, 3]
  text = 'a bad\ncab'
  wanted = [order.index(i) for i in ours.encode(text).tolist()]
  assert theirs.encode(text).tolist() == wanted
  assert theirs.decode(wanted) == text


def test_a_vocabulary_with_doubles_cannot_be_expressed():
  double = RandyTokenizer(['<|bos|>', '<|eos|>', 'a', 'b', 'a'], [])
  with pytest.raises(UserError, match="'a' stands for two ids"):
    vocabulary(double)


def test_a_model_goes_without_what_cannot_be_expressed(no_sample, tmp_path):
  source, out = tmp_path / 'run', tmp_path / 'out'
  double = RandyTokenizer(['<|bos|>', '<|eos|>', 'a', 'b', 'a'], [])
  make_run(source, double, random_weights())
  _, _, notes = export(source, 'best', 'hf', out, 'f32')
  assert 'no tokenizer.json was written' in notes[0]
  assert not (out / 'tokenizer.json').exists()
  assert 'There is no `tokenizer.json`' in (out / 'README.md').read_text()
  import_directory(out, 'hf', config(), tmp_path / 'back')
  assert load_model(tmp_path / 'back').tokenizer.kind == 'randygpt'
  make_run(tmp_path / 'other', double, random_weights(), arch='microgpt')
  with pytest.raises(UserError, match='cannot be expressed'):
    export(tmp_path / 'other', 'best', 'microgpt', tmp_path / 'mg', 'f32')


# --- places to write to, and the commands ------------------------------------


def test_only_an_earlier_export_is_written_over(
  no_sample, chat_run, tmp_path
):
  for _ in range(2):
    export(chat_run, 'best', 'microgpt', tmp_path / 'out', 'f32')
  (tmp_path / 'README.md').write_text('mine')
  for format in ('microgpt', 'hf'):
    with pytest.raises(UserError, match='nothing in it will be overwritten'):
      export(chat_run, 'best', format, tmp_path, 'f32')
  assert (tmp_path / 'README.md').read_text() == 'mine'
  with pytest.raises(UserError, match='is a run; choose another --output'):
    export(chat_run, 'best', 'hf', chat_run, 'f32')
  with pytest.raises(UserError, match='already holds config.json'):
    import_directory(tmp_path / 'out', 'auto', config(), chat_run)


@pytest.mark.slow
def test_commands_round_trip_and_training_goes_on(chat_run, tmp_path):
  out, back = tmp_path / 'out', tmp_path / 'back'
  said, _ = launch(
    'export', f'--workdir={chat_run}', '--format=microgpt', '--dtype=f16',
    f'--output={out}',
  )
  assert 'best checkpoint, step 7' in said
  assert 'f16: the largest change of a logit' in said
  said, _ = launch(
    'import_model', f'--input={out}', f'--workdir={back}',
    '--config.data.format=text', '--config.lr=1e-4',
  )
  assert 'microgpt, 2 layers x 32' in said and 'launch.chat' in said
  launch('generate', f'--workdir={back}', '--max_tokens=4')
  saved = ConfigDict(run.read_config(back))
  assert saved.lr == 1e-4 and saved.opt.schedule == 'linear_warmup'
  saved.data.path = 'sample'
  saved.eval.update(windows=2, full_at_end=False)
  saved.sample.max_tokens = 1
  saved.parallel.num_cpu_devices = 4
  result = train_and_evaluate(
    saved, back, additional_steps=2, log=lambda *a, **k: None
  )
  assert (result.outcome, result.step) == ('finished', 2)
  assert load_model(back).step == 2


def test_mistakes_are_explained(chat_run, tmp_path):
  _, err = launch('import_model', '--input=x', code=2)
  assert '--workdir=DIRECTORY are needed' in err
  _, err = launch(
    'export', f'--workdir={chat_run}', f'--output={tmp_path / "x.bin"}',
    '--dtype=f16', code=2,
  )
  assert 'RandyGPT files hold float32, not f16' in err
  assert hf_directory.our_name('layers.3.mlp_fc1.weight') == 'layer3.mlp_fc1'
  assert pathlib.Path(tmp_path / 'x.bin').exists() is False
