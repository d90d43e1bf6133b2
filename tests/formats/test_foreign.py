"""Models of other programs become runs, whole or not at all."""

import json
import os
import resource
import shutil

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs.default import get_config
from gpt.decoding.prompt import complete
from gpt.decoding.sampling import settings
from gpt.errors import UserError
from gpt.formats import foreign
from gpt.formats.convert import export, import_directory
from gpt.formats.tensor_files import open_model
from gpt.runs import create
from gpt.runs.config_file import read_config
from gpt.runs.load import load_model, params_sha256
from gpt.train import train_and_evaluate
from tests.support.commands import run_all

models = pytest.importorskip('tests.support.foreign_models')


def imported(source, workdir, *, overrides=None, **options):
  return import_directory(
    source, 'auto', get_config(), workdir, overrides, **options
  )


def files(directory):
  return sorted(p.name for p in directory.iterdir())


@pytest.fixture(scope='module')
def llama(tmp_path_factory):
  directory = tmp_path_factory.mktemp('llama')
  models.write_llama(directory, rows=5)
  (directory / 'generation_config.json').write_text(
    json.dumps({'do_sample': True, 'temperature': 0.6, 'top_k': 40})
  )
  return directory


@pytest.fixture(scope='module')
def run(llama, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('runs') / 'llama'
  done = imported(llama, workdir)
  assert (done['format'], done['step'], done['chat']) == ('hf', 0, True)
  return workdir


def test_an_imported_model_is_a_run_that_generates(run, llama):
  loaded = load_model(run)
  assert (loaded.step, loaded.which) == (0, 'latest')
  wanted = open_model(llama).read('model.embed_tokens.weight')
  assert np.array_equal(loaded.params['wte'], wanted)
  text = ''.join(
    complete(
      loaded.model,
      loaded.params,
      loaded.tokenizer,
      'To be',
      settings(1, seed=1, temperature=1.0),
      8,
    )
  )
  assert text
  assert files(run / 'checkpoints' / 'latest' / '0') == [
    'meta',
    'weights.safetensors',
  ]


def test_the_config_is_for_fine_tuning_and_the_models_own_sampling(run):
  config = read_config(run)
  assert config['lr'] == 2e-5 and config['opt']['plateau_patience'] == 0
  assert config['data']['format'] == 'chat'
  assert config['sample']['temperature'] == 0.6
  assert config['sample']['top_k'] == 40
  template = run / 'tokenizer' / 'chat_template.jinja'
  assert template.read_text() == models.TEMPLATE


def test_the_context_is_capped_and_can_be_chosen(llama, run, tmp_path):
  assert load_model(run).cfg.block_size == 2048
  done = imported(llama, tmp_path / 'short', block_size=64)
  assert done['cfg'].block_size == 64
  assert done['notes'] == [
    'context: 64 of the 4,096 tokens this model can look back; --block_size=N '
    'sets it'
  ]
  done = imported(llama, tmp_path / 'long', block_size=4096)
  assert done['cfg'].block_size == 4096 and not done['notes']
  with pytest.raises(UserError, match='--block_size=5000 is more than'):
    imported(llama, tmp_path / 'longer', block_size=5000)
  assert files(tmp_path) == ['long', 'short']


def test_bfloat16_weights_stay_bfloat16(tmp_path):
  models.write_llama(tmp_path / 'model', dtype='bf16')
  imported(
    tmp_path / 'model', tmp_path / 'run', dtype='bfloat16', block_size=32
  )
  loaded = load_model(tmp_path / 'run')
  assert loaded.cfg.param_dtype == 'bfloat16'
  kinds = {x.dtype.name for x in jax.tree.leaves(loaded.params)}
  assert kinds == {'bfloat16'}
  wanted = open_model(tmp_path / 'model').read('model.embed_tokens.weight')
  assert loaded.params['wte'].tobytes() == wanted.tobytes()


def test_all_weights_are_trained_in_float32_only(tmp_path):
  models.write_llama(tmp_path / 'model', template='', dtype='bf16')
  workdir = tmp_path / 'run'
  imported(tmp_path / 'model', workdir, dtype='bfloat16', block_size=32)
  (tmp_path / 'text.txt').write_text('To be, or not to be.\n' * 400)
  config = get_config()
  config.update(ConfigDict(read_config(workdir)))
  config.update_from_flattened_dict(
    {
      'data.path': str(tmp_path / 'text.txt'),
      'batch_size': 2,
      'total_steps': 2,
      'eval.windows': 2,
      'eval.full_at_end': False,
      'sample.max_tokens': 2,
    }
  )
  with pytest.raises(UserError, match='needs --config.model.param_dtype=float'):
    train_and_evaluate(config, workdir)
  config.model.param_dtype = 'float32'
  assert train_and_evaluate(config, workdir).step == 2
  loaded = load_model(workdir, 'latest')
  kinds = {x.dtype.name for x in jax.tree.leaves(loaded.params)}
  assert kinds == {'float32'}


def test_an_imported_run_trains_on_and_resumes_exactly(llama, tmp_path):
  (tmp_path / 'text.txt').write_text('To be, or not to be.\n' * 400)
  chosen = {
    'data.path': str(tmp_path / 'text.txt'),
    'data.format': 'text',
    'data.loss_on': 'all',
    'batch_size': 2,
    'total_steps': 4,
    'checkpoint.every': 2,
    'eval.every': 2,
    'eval.windows': 2,
    'eval.full_at_end': False,
    'sample.max_tokens': 2,
    'opt.warmup_steps': 0,
    'lr': 1e-3,
  }
  for name in ('whole', 'halves'):
    imported(llama, tmp_path / name, overrides=chosen, block_size=32)
  before = load_model(tmp_path / 'whole').params

  def train(name, **changed):
    config = get_config()
    saved = read_config(tmp_path / name)
    config.update(ConfigDict(saved))
    config.update_from_flattened_dict(changed)
    return train_and_evaluate(config, tmp_path / name)

  assert train('whole').step == 4
  assert train('halves', total_steps=2).step == 2
  assert train('halves', total_steps=4).step == 4
  whole, halves = (
    load_model(tmp_path / name, 'latest').params for name in ('whole', 'halves')
  )
  assert params_sha256(whole) == params_sha256(halves)
  assert params_sha256(whole) != params_sha256(before)


def test_an_untrained_run_exports_the_weights_it_was_made_from(
  llama, run, tmp_path
):
  export(run, 'best', 'hf', tmp_path / 'out', 'f32')
  theirs, ours = open_model(llama), open_model(tmp_path / 'out')
  assert theirs.shapes == ours.shapes
  for name in theirs.shapes:
    assert np.array_equal(theirs.read(name), ours.read(name)), name


def test_randygpts_own_directory_is_read(tmp_path):
  tensors = models.write_randygpt(tmp_path / 'model')
  done = imported(tmp_path / 'model', tmp_path / 'run')
  assert done['format'] == 'randygpt'
  loaded = load_model(tmp_path / 'run')
  assert loaded.cfg.arch == 'randy' and loaded.tokenizer.kind == 'randygpt'
  assert np.array_equal(loaded.params['wpe'], tensors['wpe.weight'])
  block = loaded.params['block_1']
  for ours, theirs in (('wo', 'attn.wo'), ('fc2', 'mlp.fc2')):
    wanted = tensors[f'layers.1.{theirs}.weight'].T
    assert np.array_equal(block[ours], wanted)
  ids = loaded.tokenizer.encode('the').tolist()
  assert ids == [loaded.tokenizer.vocab_size - 1]
  export(tmp_path / 'run', 'best', 'rgpt', tmp_path / 'out.bin')


# --- what cannot be imported


def pickled(directory):
  (directory / 'pytorch_model.bin').write_bytes(b'\x80\x02')
  (directory / 'config.json').write_text('{"model_type": "llama"}')


def adapters(directory):
  text = json.dumps({'base_model_name_or_path': 'owner/base'})
  (directory / 'adapter_config.json').write_text(text)
  (directory / 'adapter_model.safetensors').write_bytes(b'')


def only_weights(directory):
  models.write_llama(directory)
  (directory / 'config.json').unlink()


def cut(directory):
  models.write_llama(directory)
  path = directory / 'model.safetensors'
  path.write_bytes(path.read_bytes()[:-100])


def other_tokenizer(directory):
  models.write_llama(directory)
  models.foreign_tokenizers.write(directory, 'llama3')
  config = json.loads((directory / 'config.json').read_text())
  config['vocab_size'] = 300
  (directory / 'config.json').write_text(json.dumps(config))
  tensors = models.llama_tensors(config)
  models.write_tensors(directory / 'model.safetensors', tensors, 'f32')


def outside(directory):
  models.write_llama(directory)
  (directory / 'model.safetensors').unlink()
  index = {'weight_map': {'model.norm.weight': '../norm.safetensors'}}
  path = directory / 'model.safetensors.index.json'
  path.write_text(json.dumps(index))


@pytest.mark.parametrize(
  'make, message',
  [
    (lambda d: d.rmdir(), 'there is no .*needed: a Hugging Face directory'),
    (lambda d: None, 'holds no model that can be read'),
    (pickled, 'a pickle, which is never opened .*convert it first'),
    (adapters, "holds adapters .*of 'owner/base' .*merge_and_unload"),
    (only_weights, 'has no config.json'),
    (cut, 'not a whole safetensors file'),
    (other_tokenizer, 'has 703 tokens, the model.s embedding 300 rows'),
    (outside, "names the file '../norm.safetensors'"),
  ],
)
def test_what_cannot_be_imported_is_explained(tmp_path, make, message):
  source = tmp_path / 'model'
  source.mkdir()
  make(source)
  with pytest.raises(UserError, match=message):
    imported(source, tmp_path / 'run')
  assert files(tmp_path) in (['model'], [])


@pytest.mark.parametrize(
  'name, start, message',
  [
    ('a.bin', b'RGPT0003', 'launch.import_rgpt'),
    ('a.safetensors', b'', 'holds weights alone'),
    ('a.txt', b'hello', 'is no model that can be read'),
  ],
)
def test_files_of_other_kinds_are_explained(tmp_path, name, start, message):
  (tmp_path / name).write_bytes(start)
  with pytest.raises(UserError, match=message):
    foreign.detect(tmp_path / name)


def test_a_pipe_is_no_model(tmp_path):
  os.mkfifo(tmp_path / 'model')
  with pytest.raises(UserError, match='model: it is a pipe or a device'):
    foreign.detect(tmp_path / 'model')


@pytest.mark.parametrize('record', [5, [], 'x'])
def test_a_record_of_a_run_that_is_none_is_named(tmp_path, record):
  models.write_llama(tmp_path)
  config = json.loads((tmp_path / 'config.json').read_text())
  config['rgpt'] = record
  (tmp_path / 'config.json').write_text(json.dumps(config))
  with pytest.raises(UserError, match='config.json: rgpt is .*an object'):
    foreign.read_foreign(tmp_path)


def test_a_run_is_no_input(run, tmp_path):
  with pytest.raises(UserError, match='is a run already.*--init_from'):
    imported(run, tmp_path / 'run')


def test_an_address_that_leaves_the_hub_is_refused(tmp_path):
  with pytest.raises(UserError, match='hf://'):
    imported('hf://../secret', tmp_path / 'run')
  assert not files(tmp_path)


# --- all or nothing


def test_a_full_disk_leaves_nothing_and_the_next_try_works(llama, tmp_path):
  """A limit on file sizes stops the kernel's write, as a full disk does."""
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
  try:
    with pytest.raises(UserError, match='cannot write to .*run'):
      imported(llama, tmp_path / 'run')
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert not files(tmp_path)
  imported(llama, tmp_path / 'run')
  assert files(tmp_path) == ['run']


def test_an_interrupted_import_leaves_nothing(llama, tmp_path, monkeypatch):
  def interrupt(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(create, 'save_config', interrupt)
  with pytest.raises(KeyboardInterrupt):
    imported(llama, tmp_path / 'run')
  assert not files(tmp_path)


def test_what_a_killed_import_left_does_not_stop_the_next(llama, run, tmp_path):
  shutil.copytree(run, tmp_path / '.run.tmp-1-killed')
  (tmp_path / '.run.tmp-1-killed' / 'config.json').unlink()
  imported(llama, tmp_path / 'run')
  assert load_model(tmp_path / 'run').step == 0


def test_a_directory_with_other_files_keeps_them(llama, tmp_path):
  (tmp_path / 'notes.txt').write_text('mine')
  imported(llama, tmp_path)
  assert (tmp_path / 'notes.txt').read_text() == 'mine'
  assert load_model(tmp_path).step == 0
  with pytest.raises(UserError, match='already holds config.json'):
    imported(llama, tmp_path)


def test_training_starts_from_a_model_of_another_program(llama, tmp_path):
  """Its tokenizer and options are taken over; the import is kept."""
  (tmp_path / 'text.txt').write_text('To be, or not to be.\n' * 300)
  command = [
    'launch.train',
    f'--init_from={llama}',
    f'--workdir={tmp_path / "run"}',
    f'--config.data.path={tmp_path / "text.txt"}',
    '--config.data.format=text',
    '--config.data.loss_on=all',
    '--config.model.block_size=32',
    '--config.batch_size=2',
    '--config.total_steps=2',
    '--config.opt.warmup_steps=0',
    '--config.eval.windows=2',
    '--config.eval.full_at_end=False',
    '--config.sample.max_tokens=2',
  ]
  cache = str(tmp_path / 'cache')
  (ended,) = run_all([command], XDG_CACHE_HOME=cache, RGPT_HUGE_PAGES='0')
  assert ended.code == 0, ended.err
  loaded = load_model(tmp_path / 'run', 'latest')
  assert loaded.step == 2 and loaded.cfg.mlp == 'swiglu'
  assert loaded.cfg.block_size == 32
  assert (
    loaded.tokenizer.special_tokens['<|im_end|>'] == loaded.tokenizer.eos_id
  )
