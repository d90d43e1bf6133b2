"""Models of transformers' own classes, in and out.

Needs transformers and PyTorch (extra: hf-test), so it is skipped where they
are not installed. What needs neither is in test_architectures.py.
"""

import json
import warnings

import jax
import numpy as np
import pytest

from gpt.data.sample_text import sample_text
from gpt.decoding import generation, sampling
from gpt.formats import architectures, model_card
from gpt.formats.convert import export, import_directory
from gpt.formats.huggingface import read_hf
from gpt.formats.tensor_files import open_model
from gpt.runs.load import load_model
from gpt.tokenizers import build_tokenizer
from gpt.tokenizers.chat_format import CHAT_TOKENS
from launch import config_flag
from tests.support.workdirs import make_run

pytestmark = [
  pytest.mark.slow,
  # Their own code and that of the libraries below is not ours to warn about.
  pytest.mark.filterwarnings('default'),
]
torch = transformers = None


@pytest.fixture(scope='module', autouse=True)
def libraries():
  """Imports the libraries when a test runs: collection should stay fast."""
  global torch, transformers
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    reason = 'extra hf-test is needed'
    torch = pytest.importorskip('torch', reason=reason)
    transformers = pytest.importorskip('transformers', reason=reason)


@pytest.fixture(autouse=True)
def no_sample(monkeypatch):
  """Model cards without a sample: it would compile a model each time."""
  monkeypatch.setattr(model_card, 'sample', lambda loaded: ('', ''))


TEXT = sample_text()[:30_000]
LLAMA3 = {
  'rope_type': 'llama3',
  'rope_theta': 5e5,
  'factor': 8.0,
  'low_freq_factor': 1.0,
  'high_freq_factor': 4.0,
  'original_max_position_embeddings': 16,
}
LLAMA = {
  'hidden_size': 48,
  'intermediate_size': 80,
  'num_hidden_layers': 2,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'max_position_embeddings': 64,
}
GPT2 = {'n_embd': 48, 'n_layer': 2, 'n_head': 4, 'n_positions': 64}
# class, options of its config; as published models have them.
THEIRS = {
  'llama 2': ('Llama', {**LLAMA, 'num_key_value_heads': 4}),
  'llama 3': ('Llama', {**LLAMA, 'rope_scaling': LLAMA3}),
  'smollm2': (
    'Llama',
    {
      **LLAMA,
      'hidden_size': 36,
      'num_attention_heads': 9,
      'num_key_value_heads': 3,
      'rope_theta': 1e5,
      'tie_word_embeddings': True,
    },
  ),
  'llama, biases, wide heads': (
    'Llama',
    {**LLAMA, 'attention_bias': True, 'mlp_bias': True, 'head_dim': 20},
  ),
  'qwen3': ('Qwen3', {**LLAMA, 'head_dim': 16, 'rope_theta': 1e6}),
  'qwen3, tied': (
    'Qwen3',
    {**LLAMA, 'head_dim': 16, 'tie_word_embeddings': True},
  ),
  'arcee': ('Arcee', LLAMA),
  'nanochat': ('NanoChat', LLAMA),
  'nanochat, tied, no cap': (
    'NanoChat',
    {**LLAMA, 'tie_word_embeddings': True, 'final_logit_softcapping': None},
  ),
  'gpt2': ('GPT2', GPT2),
  'gpt2, untied': (
    'GPT2',
    {**GPT2, 'tie_word_embeddings': False, 'n_inner': 100},
  ),
}
HEADS = {'GPT2': 'GPT2LMHeadModel'}


@pytest.fixture(scope='module')
def bpe():
  return build_tokenizer('hf', [TEXT], 300)


def class_of(kind):
  return getattr(transformers, HEADS.get(kind, f'{kind}ForCausalLM'))


def make_theirs(directory, kind, options, tokenizer, **saving):
  """Saves a tiny random model and returns it."""
  torch.manual_seed(0)
  config = getattr(transformers, f'{kind}Config')(
    vocab_size=tokenizer.vocab_size,
    bos_token_id=tokenizer.bos_id,
    eos_token_id=tokenizer.eos_id,
    pad_token_id=tokenizer.eos_id,
    **options,
  )
  model = class_of(kind)(config).eval()
  with torch.no_grad():
    for x in model.parameters():  # Gains and biases are 1 and 0 at first.
      if x.ndim == 1:
        x.add_(0.3 * torch.randn_like(x))
      else:
        x.mul_(5)
  model.save_pretrained(directory, **saving)
  (directory / 'tokenizer.json').write_bytes(tokenizer.data)
  (directory / 'tokenizer_config.json').write_text(
    json.dumps({'bos_token': '<bos>', 'eos_token': '<bos>'})
  )
  return model


def import_run(source, workdir):
  config = config_flag.load_config('configs/default.py')
  return import_directory(source, 'auto', config, workdir)


def theirs_on(model, ids):
  with torch.no_grad():
    return model(torch.tensor(ids)).logits.float().numpy()


def ours_on(loaded, ids):
  forward = jax.jit(loaded.model.apply)
  return np.asarray(forward({'params': loaded.params}, ids.astype(np.int32)))


def load(directory, **kwargs):
  """Loads without trust_remote_code; every tensor must have found its place."""
  model, info = transformers.AutoModelForCausalLM.from_pretrained(
    directory, output_loading_info=True, **kwargs
  )
  assert not any(info.values()), info
  return model.eval()


def assert_equal_files(one, two):
  """The same tensors: names, dtypes, shapes and bits."""
  first, second = open_model(one), open_model(two)
  assert first.shapes == second.shapes
  for name, entry in first.entries.items():
    assert second.entries[name].dtype == entry.dtype, name
    assert first.read(name).tobytes() == second.read(name).tobytes(), name


@pytest.mark.parametrize('name', THEIRS)
def test_their_models_compute_the_same_here_and_leave_unchanged(
  tmp_path, bpe, name
):
  kind, options = THEIRS[name]
  theirs = make_theirs(tmp_path / 'theirs', kind, options, bpe)
  done = import_run(tmp_path / 'theirs', tmp_path / 'run')
  assert done['parameters'] == theirs.num_parameters()
  loaded = load_model(tmp_path / 'run')
  ids = np.random.default_rng(0).integers(0, bpe.vocab_size, (2, 40))
  wanted = theirs_on(theirs, ids)
  assert wanted.std() > 0.3
  np.testing.assert_allclose(ours_on(loaded, ids), wanted, atol=1e-4)

  _, _, notes = export(tmp_path / 'run', 'best', 'hf', tmp_path / 'out')
  assert notes[-1].startswith(f'note: written as {class_of(kind).__name__}')
  again = load(tmp_path / 'out')
  assert type(again) is class_of(kind)
  assert_equal_files(tmp_path / 'theirs', tmp_path / 'out')
  np.testing.assert_array_equal(theirs_on(again, ids), wanted)
  one, two = theirs.config.to_dict(), again.config.to_dict()
  free = {'architectures', 'rgpt', 'n_inner', 'embd_pdrop', 'attn_pdrop'}
  differ = {k for k in one if one[k] != two.get(k)} - free
  assert not {k for k in differ if not k.startswith('_')}


@pytest.mark.parametrize('name', ['smollm2', 'qwen3', 'gpt2', 'nanochat'])
def test_bfloat16_weights_come_back_bit_by_bit(tmp_path, bpe, name):
  kind, options = THEIRS[name]
  source = tmp_path / 'theirs'
  model = make_theirs(source, kind, options, bpe).to(torch.bfloat16)
  model.save_pretrained(source)
  half = read_hf(source, 'bfloat16')
  assert {x.dtype.name for x in jax.tree.leaves(half.params)} == {'bfloat16'}
  import_run(source, tmp_path / 'run')
  export(tmp_path / 'run', 'best', 'hf', tmp_path / 'out', 'bf16')
  assert_equal_files(source, tmp_path / 'out')


def test_sharded_models_are_read(tmp_path, bpe):
  kind, options = THEIRS['llama 3']
  make_theirs(tmp_path / 'one', kind, options, bpe)
  make_theirs(tmp_path / 'many', kind, options, bpe, max_shard_size='40KB')
  shards = list((tmp_path / 'many').glob('model-*.safetensors'))
  assert len(shards) > 2
  one, many = read_hf(tmp_path / 'one'), read_hf(tmp_path / 'many')
  jax.tree.map(np.testing.assert_array_equal, one.params, many.params)


# Every row of the table in docs/exporting.md.
ROPE = {'pos': 'rope', 'final_norm': True}
GQA = {'n_kv_head': 2}
OURS = {
  'Llama': {**ROPE, **GQA, 'mlp': 'swiglu'},
  'Llama, tied': {**ROPE, 'mlp': 'swiglu', 'tied_embeddings': True},
  'Llama, embed_norm, tied': {
    **ROPE,
    'mlp': 'swiglu',
    'embed_norm': True,
    'tied_embeddings': True,
  },
  'Llama, gains, biases': {
    **ROPE,
    **GQA,
    'mlp': 'swiglu',
    'norm_gain': True,
    'bias': True,
    'rope_base': 5e5,
    'rope_scaling': 'llama3:8,1,4,16',
  },
  'Qwen3': {**ROPE, 'mlp': 'swiglu', 'qk_norm': True, 'embed_norm': True},
  'Qwen3, tied, gains': {
    **ROPE,
    **GQA,
    'mlp': 'swiglu',
    'qk_norm': True,
    'qk_gain': True,
    'norm_gain': True,
    'head_dim': 24,
    'mlp_width': 80,
    'norm_eps': 1e-6,
    'tied_embeddings': True,
  },
  'Arcee': {**ROPE, **GQA},
  'Arcee, relu, linear': {**ROPE, 'mlp': 'relu', 'rope_scaling': 'linear:2'},
  'Arcee, gelu, biases': {**ROPE, 'mlp': 'gelu', 'bias': True},
  'NanoChat': {
    **ROPE,
    **GQA,
    'qk_norm': True,
    'embed_norm': True,
    'logit_softcap': 15.0,
  },
  'NanoChat, tied': {
    **ROPE,
    'qk_norm': True,
    'arch': 'microgpt',
    'tied_embeddings': True,
  },
  'GPT2': {'norm': 'layer', 'mlp': 'gelu', 'final_norm': True},
  'GPT2, tied, biases': {
    'norm': 'layer',
    'mlp': 'gelu',
    'final_norm': True,
    'bias': True,
    'norm_gain': True,
    'tied_embeddings': True,
  },
}


@pytest.fixture(scope='module')
def tokenizers(bpe):
  return {
    'char': build_tokenizer('char', [TEXT], 0),
    'hf': bpe,
    'chat': build_tokenizer('hf', [TEXT], 320, CHAT_TOKENS),
  }


def export_ours(root, tokenizer, name):
  """A random model of OURS: (LoadedModel, its model in transformers)."""
  rng = np.random.default_rng(2)
  make_run(
    root / 'run',
    tokenizer,
    lambda leaf, shape: rng.normal(0, 0.15, shape) + (len(shape) == 1),
    **OURS[name],
  )
  _, _, notes = export(root / 'run', 'best', 'hf', root / 'out')
  model = load(root / 'out')
  assert isinstance(model, class_of(name.split(',')[0]))
  assert type(model).__name__ in notes[-1]
  assert not list((root / 'out').glob('*.py'))
  return load_model(root / 'run'), model


@pytest.mark.parametrize('name', OURS)
def test_our_models_compute_the_same_as_their_classes(tmp_path, bpe, name):
  loaded, model = export_ours(tmp_path, bpe, name)
  ids = np.random.default_rng(0).integers(0, bpe.vocab_size, (3, 32))
  wanted = ours_on(loaded, ids)
  assert wanted.std() > 0.1
  np.testing.assert_allclose(theirs_on(model, ids), wanted, atol=1e-4)


@pytest.mark.parametrize(
  'name', ['Llama', 'Qwen3', 'Arcee', 'NanoChat', 'GPT2']
)
@pytest.mark.parametrize('kind', ['char', 'hf'])
def test_the_likeliest_text_is_the_same(tmp_path, tokenizers, name, kind):
  """From a text to a text, with AutoTokenizer and generate()."""
  tokenizer = tokenizers[kind]
  loaded, model = export_ours(tmp_path, tokenizer, name)
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / 'out')
  prompt = theirs('What is it', return_tensors='pt')
  start = tokenizer.encode('What is it').tolist()
  assert prompt['input_ids'][0].tolist() == start
  n = loaded.cfg.block_size - len(start)
  text = model.generate(
    **prompt, max_new_tokens=n, do_sample=False, eos_token_id=None
  )[0, len(start) :].tolist()
  ours = []
  for _, new in generation.generate(
    loaded.model,
    loaded.params,
    [start],
    sampling.settings(1, temperature=0.0),
    n,
    bias_V=generation.ban_bias(tokenizer),
  ):
    ours += new or []
  assert text == ours


def test_a_chat_model_of_theirs_has_our_template_and_ends(tmp_path, tokenizers):
  tokenizer = tokenizers['chat']
  _, model = export_ours(tmp_path, tokenizer, 'Llama')
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / 'out')
  chat = [{'role': 'user', 'content': 'What is it?'}]
  inputs = theirs.apply_chat_template(
    chat, add_generation_prompt=True, return_dict=True, return_tensors='pt'
  )
  torch.manual_seed(0)
  out = model.generate(**inputs, max_new_tokens=20)[0].tolist()
  new = out[inputs['input_ids'].shape[1] :]
  ends = model.generation_config.eos_token_id
  assert set(ends) == {
    tokenizer.eos_id,
    tokenizer.special_tokens['<|end_turn|>'],
  }
  assert not set(new) & set(model.generation_config.suppress_tokens)


def test_a_stock_export_that_they_trained_further_comes_back(tmp_path, bpe):
  """One step of PyTorch, save_pretrained, import: their gains stay."""
  _, model = export_ours(tmp_path, bpe, 'Llama')
  model.train()
  ids = np.random.default_rng(0).integers(0, bpe.vocab_size, (2, 32))
  model(torch.tensor(ids), labels=torch.tensor(ids)).loss.backward()
  with torch.no_grad():
    for p in model.parameters():
      p -= 0.01 * p.grad
  model.eval().save_pretrained(tmp_path / 'saved')
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / 'out')
  tokenizer.save_pretrained(tmp_path / 'saved')
  import_run(tmp_path / 'saved', tmp_path / 'back')
  back = load_model(tmp_path / 'back')
  assert back.cfg.norm_gain and back.step == 7
  np.testing.assert_allclose(
    ours_on(back, ids), theirs_on(model, ids), atol=1e-4
  )


def test_every_class_we_know_is_one_of_theirs():
  for family in architectures.FAMILIES.values():
    config = transformers.AutoConfig.for_model(family.model_type)
    found = transformers.AutoModelForCausalLM._model_mapping[type(config)]
    assert found.__name__ == family.hf_class
