"""Exports and imports: names, shapes, numbers and ids survive both ways."""

import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from ml_collections import ConfigDict

from gpt.data import record as data_record
from gpt.errors import UserError
from gpt.formats import model_card
from gpt.formats.convert import export, import_directory
from gpt.formats.tensors import rounding_report
from gpt.formats.tokenizer_json import equivalent, vocabulary
from gpt.runs import config_file
from gpt.runs.load import load_model, params_sha256
from gpt.tokenizers import CharTokenizer, RandyTokenizer, build_tokenizer
from gpt.tokenizers.chat_format import CHAT_TOKENS
from gpt.tokenizers.huggingface import HfTokenizer
from gpt.train import train_and_evaluate
from tests.support import export_tools
from tests.support.export_tools import TEXT, config, random_weights
from tests.support.workdirs import launch, make_run

library = pytest.importorskip('safetensors.numpy')
tokenizers = pytest.importorskip('tokenizers')
bpe, chat_run = export_tools.bpe, export_tools.chat_run
OPTIONS = {
  'mlp': 'swiglu',
  'pos': 'rope',
  'n_kv_head': 2,
  'qk_norm': True,
  'final_norm': True,
  'logit_softcap': 15.0,
  'tied_embeddings': True,
}


@pytest.fixture
def no_sample(monkeypatch):
  """Model cards without a sample: it takes seconds to compile."""
  monkeypatch.setattr(model_card, 'sample', lambda loaded: ('', ''))


def test_a_safetensors_file_holds_transposed_matrices(chat_run, tmp_path):
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


ROPE = {'pos': 'rope', 'final_norm': True}


# --- Hugging Face -------------------------------------------------------------


@pytest.mark.parametrize(
  'model',
  [
    {},
    {'arch': 'microgpt'},
    OPTIONS,
    {'norm': 'layer', 'norm_gain': True, 'bias': True, 'embed_norm': True},
    {**ROPE, 'mlp': 'swiglu', 'n_kv_head': 2},
    {**ROPE, 'mlp': 'swiglu', 'qk_norm': True, 'tied_embeddings': True},
    {**ROPE, 'bias': True, 'mlp_width': 24},
    {**ROPE, 'arch': 'microgpt', 'qk_norm': True, 'logit_softcap': 15.0},
    {'norm': 'layer', 'final_norm': True},
  ],
  ids=[
    'randy',
    'microgpt',
    'options',
    'layer norm',
    'llama',
    'qwen3',
    'arcee',
    'nanochat',
    'gpt2',
  ],
)
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


def test_exports_older_than_an_option_are_read(no_sample, tmp_path):
  source, out, back = (tmp_path / n for n in ('run', 'out', 'back'))
  make_run(source, CharTokenizer('abcdef \n'), random_weights())
  export(source, 'best', 'hf', out, 'f32')
  path = out / 'config.json'
  entries = json.loads(path.read_text())
  for name in (
    'head_dim',
    'mlp_width',
    'norm',
    'norm_eps',
    'bias',
    'rope_rule',
  ):
    del entries[name]
  path.write_text(json.dumps(entries))
  import_directory(out, 'hf', config(), back)
  one, two = load_model(source), load_model(back)
  assert params_sha256(one.params) == params_sha256(two.params)
  assert one.cfg == two.cfg


def test_a_directory_without_our_tokenizer_is_read_with_its_tokenizer_json(
  no_sample, tmp_path
):
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


def test_models_of_another_type_are_refused(tmp_path):
  (tmp_path / 'config.json').write_text('{"model_type": "mamba"}')
  with pytest.raises(UserError, match="model_type is 'mamba'; known: llama"):
    import_directory(tmp_path, 'auto', config(), tmp_path / 'run')


def test_a_run_cannot_be_imported_as_an_export(trained_workdir, tmp_path):
  with pytest.raises(UserError, match='is a run already'):
    import_directory(trained_workdir, 'hf', config(), tmp_path / 'run')


def test_the_card_has_data_config_numbers_and_a_sample(
  trained_workdir, tmp_path
):
  export(trained_workdir, 'best', 'hf', tmp_path, 'bf16')
  card = (tmp_path / 'README.md').read_text()
  assert card.startswith('---\nlibrary_name: transformers\n')
  loaded = load_model(trained_workdir)
  for text in (
    loaded.data['description'],
    'trust_remote_code=True',
    '| context | 32',
    '| step | 20 of 20 |',
    'nats/token',
    'bits/byte',
    '| weights | bf16 |',
    'largest change of a logit',
    'ROMEO:',
    'split_special_tokens=True',
  ):
    assert text in card, text
  assert '{tokenizer_note}' not in card
  sampled = card.split('```text\n')[-1]
  assert len(sampled) > 30


def test_half_precision_error_is_measured(chat_run):
  loaded = load_model(chat_run)
  reports = [
    rounding_report(loaded.cfg, loaded.params, dtype)
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
  merges = [
    ('a', 'b'),
    ('ab', 'c'),
    ('a', 'a'),
    (' ', 'ab'),
    ('aa', 'aa'),
    ('c', '\n'),
    (' ab', 'abc'),
  ]
  vocab = ['<|bos|>', '<|eos|>', *chars, *(a + b for a, b in merges)]
  return RandyTokenizer(vocab, merges, CHAT_TOKENS)


@pytest.mark.parametrize('kind', ['char', 'sentencepiece', 'randygpt', 'hf'])
def test_tokenizer_json_gives_the_same_ids(kind):
  ours = (
    randy_bpe()
    if kind == 'randygpt'
    else build_tokenizer(kind, [TEXT], 420, CHAT_TOKENS)
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


def test_a_vocabulary_with_equal_tokens_cannot_be_expressed():
  double = RandyTokenizer(['<|bos|>', '<|eos|>', 'a', 'b', 'a'], [])
  with pytest.raises(UserError, match="'a' stands for two ids"):
    vocabulary(double)


def test_hf_export_works_without_a_tokenizer_json(no_sample, tmp_path):
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


@pytest.mark.parametrize('format', ['rgpt', 'safetensors', 'microgpt', 'hf'])
def test_an_existing_output_is_kept_unless_overwrite_is_given(
  no_sample, request, tmp_path, format
):
  run = 'trained_workdir' if format == 'rgpt' else 'chat_run'
  source, out = request.getfixturevalue(run), tmp_path / 'out'
  export(source, 'best', format, out)

  def content():
    files = [out] if out.is_file() else [p for p in out.rglob('*')]
    return {p: p.read_bytes() for p in files if p.is_file()}

  before = content()
  with pytest.raises(UserError, match='exists already: add --overwrite'):
    export(source, 'best', format, out)
  assert content() == before
  export(source, 'best', format, out, overwrite=True)
  assert content() == before  # Equal runs give equal files.


def test_directories_that_are_no_exports_are_never_written_to(
  chat_run, tmp_path
):
  mine = tmp_path / 'mine'
  mine.mkdir()
  for name, text in (
    ('README.md', 'mine'),
    ('config.json', '{"model_type": "llama"}'),
    ('notes.txt', 'mine, too'),
  ):
    (mine / name).write_text(text)
    for format in ('microgpt', 'hf'):
      with pytest.raises(UserError, match='nothing in it will be overwritten'):
        export(chat_run, 'best', format, mine, overwrite=True)
    assert (mine / name).read_text() == text
  with pytest.raises(UserError, match='is a run; choose another --output'):
    export(chat_run, 'best', 'hf', chat_run, overwrite=True)
  with pytest.raises(UserError, match='notes.txt is a file; --format=hf'):
    export(chat_run, 'best', 'hf', mine / 'notes.txt', overwrite=True)
  with pytest.raises(UserError, match='there is no directory'):
    export(chat_run, 'best', 'safetensors', tmp_path / 'none/x')


def test_an_import_leaves_other_runs_alone(chat_run, tmp_path):
  export(chat_run, 'best', 'microgpt', tmp_path / 'out')
  with pytest.raises(UserError, match='already holds config.json'):
    import_directory(tmp_path / 'out', 'auto', config(), chat_run)


def test_the_output_is_checked_before_jax_is_imported(tmp_path):
  """And before the workdir, which does not exist here, is looked at."""
  file = tmp_path / 'thesis.txt'
  file.write_text('mine')
  program = (
    'import sys; from launch import cli, export\n'
    'try: cli.run(export.main)\n'
    'finally: print("jax" in sys.modules)'
  )
  for format in ('rgpt', 'safetensors', 'hf'):
    done = subprocess.run(
      [sys.executable, '-c', program]
      + ['--workdir=none', f'--format={format}', f'--output={file}'],
      capture_output=True,
      text=True,
    )
    assert done.returncode == 2 and done.stdout == 'False\n', done.stderr
    assert 'thesis.txt' in done.stderr
  assert file.read_text() == 'mine'


def test_an_import_keeps_its_data_record_and_obeys_overrides(
  no_sample, chat_run, tmp_path
):
  record = {'kind': 'files', 'description': 'talks', 'text_sha256': 'abc'}
  source = shutil.copytree(chat_run, tmp_path / 'source')
  data_record.write(source, *record.values())
  export(source, 'best', 'hf', tmp_path / 'hf', 'f32')
  import_directory(
    tmp_path / 'hf',
    'auto',
    config(),
    tmp_path / 'run',
    {'model.dropout': 0.3, 'lr': 0.5},
  )
  assert data_record.read(tmp_path / 'run') == record
  saved = config_file.read_config(tmp_path / 'run')
  assert (saved['model']['dropout'], saved['lr']) == (0.3, 0.5)


@pytest.mark.slow
def test_commands_round_trip_and_training_continues(chat_run, tmp_path):
  out, back = tmp_path / 'out', tmp_path / 'back'
  out_text, _ = launch(
    'export',
    f'--workdir={chat_run}',
    '--format=microgpt',
    '--dtype=f16',
    f'--output={out}',
  )
  assert 'best checkpoint, step 7' in out_text
  assert 'f16: rounding the weights changes logits by at most' in out_text
  out_text, _ = launch(
    'import_model',
    f'--input={out}',
    f'--workdir={back}',
    '--config.data.format=text',
    '--config.lr=1e-4',
  )
  assert 'microgpt, 2 layers x 32' in out_text and 'launch.chat' in out_text
  launch('generate', f'--workdir={back}', '--max_tokens=4')
  saved = ConfigDict(config_file.read_config(back))
  assert saved.lr == 1e-4 and saved.opt.schedule == 'linear_warmup'
  saved.data.path = 'sample'
  saved.eval.update(windows=2, full_at_end=False)
  saved.sample.max_tokens = 1
  saved.parallel.num_cpu_devices = 4
  result = train_and_evaluate(saved, back, additional_steps=2)
  assert (result.outcome, result.step) == ('finished', 2)
  assert load_model(back).step == 2


def test_mistakes_are_explained(chat_run, tmp_path):
  _, err = launch('import_model', '--input=x', code=2)
  assert '--workdir=DIRECTORY are needed' in err
  _, err = launch(
    'export',
    f'--workdir={chat_run}',
    f'--output={tmp_path / "x.bin"}',
    '--dtype=f16',
    code=2,
  )
  assert 'RandyGPT files hold float32, not f16' in err
  assert pathlib.Path(tmp_path / 'x.bin').exists() is False
