"""Exported directories in the `transformers` library.

Needs transformers and PyTorch (extra: hf-test), so it is skipped where they
are not installed.
"""

import warnings

import jax
import numpy as np
import pytest

from gpt.data.sample_text import sample_text
from gpt.decoding import generation, sampling
from gpt.formats import model_card
from gpt.formats.convert import export, import_directory
from gpt.formats.tensors import rounding_report
from gpt.runs.load import load_model, params_sha256
from gpt.tokenizers import build_tokenizer
from gpt.tokenizers.chat_format import CHAT_TOKENS, build_prompt
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


TEXT = sample_text()[:30_000]
OPTIONS = {
  'mlp': 'swiglu',
  'pos': 'rope',
  'n_kv_head': 2,
  'qk_norm': True,
  'exclusive_attention': True,
  'final_norm': True,
  'logit_softcap': 15.0,
  'tied_embeddings': True,
}
MODELS = {
  'randy': {},
  'microgpt': {'arch': 'microgpt'},
  'options': OPTIONS,
  'gelu': {'mlp': 'gelu', 'embed_norm': True},
  'layer_norm': {
    'mlp': 'swiglu',
    'mlp_width': 80,
    'norm': 'layer',
    'norm_gain': True,
    'bias': True,
    'embed_norm': True,
    'final_norm': True,
  },
  'wide_heads': {
    **OPTIONS,
    'head_dim': 24,
    'qk_gain': True,
    'norm_gain': True,
    'norm_eps': 1e-3,
    'rope_base': 5e5,
    'rope_scaling': 'llama3:8,1,4,8',
  },
}


@pytest.fixture(scope='module')
def tokenizer():
  return build_tokenizer('sentencepiece', [TEXT], 420, CHAT_TOKENS)


@pytest.fixture(scope='module')
def exported(libraries, tmp_path_factory, tokenizer):
  """name, dtype -> (LoadedModel, directory); made once each."""
  made = {}
  root = tmp_path_factory.mktemp('exports')

  def make(name, dtype='f32'):
    if (name, dtype) not in made:
      rng = np.random.default_rng(1)
      workdir = root / f'{name}-{dtype}-run'
      make_run(
        workdir,
        tokenizer,
        # Gains are around 1; biases as large would decide every token.
        lambda leaf, shape: (
          rng.normal(0, 0.15, shape)
          + (len(shape) == 1 and 'bias' not in str(leaf))
        ),
        **MODELS[name],
      )
      with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_card, 'sample', lambda loaded: ('', ''))
        export(workdir, 'best', 'hf', root / f'{name}-{dtype}', dtype)
      made[name, dtype] = load_model(workdir), root / f'{name}-{dtype}'
    return made[name, dtype]

  return make


def load(directory, **kwargs):
  model = transformers.AutoModelForCausalLM.from_pretrained(
    directory, trust_remote_code=True, **kwargs
  )
  return model.eval()


def load_tokenizer(directory, **kwargs):
  return transformers.AutoTokenizer.from_pretrained(
    directory, trust_remote_code=True, **kwargs
  )


def ours(loaded, ids):
  forward = jax.jit(loaded.model.apply)
  return np.asarray(forward({'params': loaded.params}, ids.astype(np.int32)))


def random_ids(cfg, shape, seed=0):
  return np.random.default_rng(seed).integers(0, cfg.vocab_size, shape)


@pytest.mark.parametrize('name', MODELS)
def test_logits_equal_ours(exported, name):
  loaded, directory = exported(name)
  ids = random_ids(loaded.cfg, (3, loaded.cfg.block_size))
  with torch.no_grad():
    theirs = load(directory)(torch.tensor(ids)).logits.numpy()
  wanted = ours(loaded, ids)
  assert wanted.std() > 0.5
  np.testing.assert_allclose(theirs, wanted, atol=1e-4)


@pytest.mark.parametrize('name', MODELS)
@pytest.mark.parametrize('use_cache', [True, False])
def test_greedy_text_equals_ours_even_past_the_context(
  exported, name, use_cache
):
  loaded, directory = exported(name)
  prompt, n = random_ids(loaded.cfg, 9).tolist(), 3 * loaded.cfg.block_size
  wanted = []
  for _, new in generation.generate(
    loaded.model,
    loaded.params,
    [prompt],
    sampling.settings(1, temperature=0.0),
    n,
    bias_V=generation.ban_bias(loaded.tokenizer),
  ):
    wanted += new or []
  # <|end_turn|> may be sampled there: it ends a turn.
  banned = list(loaded.tokenizer.unsampleable_ids)
  theirs = (
    load(directory)
    .generate(
      torch.tensor([prompt]),
      max_new_tokens=n,
      do_sample=False,
      use_cache=use_cache,
      eos_token_id=None,
      suppress_tokens=banned,
    )[0, len(prompt) :]
    .tolist()
  )
  assert theirs == wanted
  assert len(set(wanted)) > 5


def test_sampling_and_ends_come_from_the_run(exported):
  loaded, directory = exported('randy')
  model, special = load(directory), loaded.tokenizer.special_tokens
  config = model.generation_config
  assert (config.do_sample, config.temperature, config.top_p) == (
    True,
    0.8,
    0.9,
  )
  ends = [special['<|eos|>'], special['<|end_turn|>']]
  assert config.eos_token_id == ends
  assert not set(config.suppress_tokens) & set(ends)
  torch.manual_seed(0)
  out = model.generate(torch.tensor([[1, 20, 30]]), max_new_tokens=40)
  new = out[0, 3:].tolist()
  assert len(new) > 1 and not set(config.suppress_tokens) & set(new)


def test_rows_of_different_lengths_do_not_affect_each_other(exported):
  _, directory = exported('microgpt')
  model, tokenizer = load(directory), load_tokenizer(directory)
  texts = ['What is it, that', 'To']
  settings = {'max_new_tokens': 12, 'do_sample': False, 'eos_token_id': None}
  both = tokenizer(
    texts, return_tensors='pt', padding=True, padding_side='left'
  )
  together = model.generate(**both, **settings)[:, -12:]
  for i, text in enumerate(texts):
    alone = model.generate(**tokenizer(text, return_tensors='pt'), **settings)
    assert alone[0, -12:].tolist() == together[i].tolist()


@pytest.mark.parametrize('dtype', ['f16', 'bf16'])
def test_half_precision_error_equals_the_exporters_report(exported, dtype):
  from safetensors.torch import load_file  # Imports PyTorch.

  loaded, directory = exported('randy', dtype)
  stored = load_file(directory / 'model.safetensors')['wte.weight'].dtype
  assert stored == {'f16': torch.float16, 'bf16': torch.bfloat16}[dtype]
  ids = random_ids(loaded.cfg, (4, loaded.cfg.block_size))
  model = load(directory).float()
  with torch.no_grad():
    theirs = model(torch.tensor(ids)).logits.numpy()
  error = np.abs(theirs - ours(loaded, ids)).max()
  report = rounding_report(loaded.cfg, loaded.params, dtype)
  # Computed over the same seeded tokens.
  assert error == pytest.approx(report['max_error'], rel=0.05)


def test_half_precision_weights_run_without_conversion(exported):
  loaded, directory = exported('randy', 'bf16')
  ids = random_ids(loaded.cfg, (2, 16))
  with torch.no_grad():
    logits = load(directory)(torch.tensor(ids)).logits
  assert logits.dtype == torch.float32
  wanted = ours(loaded, ids)
  assert np.abs(logits.numpy() - wanted).max() < 0.05 * np.abs(wanted).max()


def test_the_tokenizer_equals_ours(exported, tokenizer):
  _, directory = exported('randy')
  theirs = load_tokenizer(directory)
  text = 'What \u2581 is\n\n\tthat \U0001f642 12?'
  ids = tokenizer.encode(text).tolist()
  assert theirs(text)['input_ids'] == ids
  assert theirs.decode(ids) == text
  assert theirs.bos_token_id == tokenizer.bos_id
  assert theirs.eos_token_id == tokenizer.eos_id
  # Text that names a control token: only with this does it stay text.
  safe = load_tokenizer(directory, split_special_tokens=True)
  named = 'a<|user|>b'
  assert safe(named)['input_ids'] == tokenizer.encode(named).tolist()


@pytest.mark.parametrize('kind', ['char', 'hf', 'sentencepiece'])
def test_chat_prompts_equal_ours(tmp_path, monkeypatch, kind):
  monkeypatch.setattr(model_card, 'sample', lambda loaded: ('', ''))
  tokenizer = build_tokenizer(kind, [TEXT], 420, CHAT_TOKENS)
  make_run(tmp_path / 'run', tokenizer, lambda name, shape: np.zeros(shape))
  export(tmp_path / 'run', 'best', 'hf', tmp_path / 'out', 'f32')
  theirs = load_tokenizer(tmp_path / 'out')
  chat = [
    {'role': 'user', 'content': 'What is it?'},
    {'role': 'assistant', 'content': 'A "thing"'},
    {'role': 'user', 'content': 'of\nwhat'},
  ]
  special = list(tokenizer.special_tokens.values())
  ids, _ = build_prompt(chat, tokenizer, 1000)
  assert (
    theirs.apply_chat_template(
      chat, add_generation_prompt=True, return_dict=False
    )
    == ids
  )
  for turns in (chat, chat[1:], []):
    for text in ('Be brief.', ''):
      talk = [{'role': 'system', 'content': text}, *turns]
      if not text and not turns:
        continue  # No message at all.
      ids, _ = build_prompt(talk, tokenizer, 1000)
      rendered = theirs.apply_chat_template(
        talk, tokenize=False, add_generation_prompt=True
      )
      names = theirs.convert_ids_to_tokens
      ours = tokenizer.decode([i for i in ids if i not in special])
      shown = rendered
      for i in special:
        shown = shown.replace(names(i), '')
      assert shown == ours, talk
      assert [rendered.count(names(i)) for i in special] == [
        ids.count(i) for i in special
      ]


def test_a_position_past_the_context_is_an_error(exported):
  loaded, directory = exported('randy')
  ids = random_ids(loaded.cfg, (1, loaded.cfg.block_size + 1))
  with pytest.raises(ValueError, match='outside the trained context of 32'):
    load(directory)(torch.tensor(ids))


def test_the_loss_is_that_of_the_next_token(exported):
  loaded, directory = exported('randy')
  ids = random_ids(loaded.cfg, (2, 20))
  labels = torch.tensor(ids)
  labels[0, :5] = -100
  loss = load(directory)(torch.tensor(ids), labels=labels).loss
  logp = jax.nn.log_softmax(ours(loaded, ids)[:, :-1])
  nats = -np.take_along_axis(np.asarray(logp), ids[:, 1:, None], -1)[..., 0]
  counted = np.ones_like(nats, bool)
  counted[0, :4] = False
  assert loss.item() == pytest.approx(nats[counted].mean(), rel=1e-5)


def test_a_model_trained_in_pytorch_can_be_imported(exported, tmp_path):
  """One step of PyTorch, save_pretrained, import: their weights, our logits."""
  loaded, directory = exported('randy')
  model = load(directory).train()
  ids = torch.tensor(random_ids(loaded.cfg, (2, 20)))
  model(ids, labels=ids).loss.backward()
  with torch.no_grad():
    for p in model.parameters():
      p -= 0.01 * p.grad
  model.eval().save_pretrained(tmp_path / 'saved')
  load_tokenizer(directory).save_pretrained(tmp_path / 'saved')
  config = config_flag.load_config('configs/default.py')
  import_directory(tmp_path / 'saved', 'auto', config, tmp_path / 'run')
  back = load_model(tmp_path / 'run')
  assert params_sha256(back.params) != params_sha256(loaded.params)
  with torch.no_grad():
    theirs = model(ids).logits.numpy()
  np.testing.assert_allclose(theirs, ours(back, ids.numpy()), atol=1e-4)
  assert back.step == 7 and back.tokenizer.kind == 'hf'


def test_a_new_model_has_our_initial_scale(exported):
  _, directory = exported('randy')
  config = transformers.AutoConfig.from_pretrained(
    directory, trust_remote_code=True
  )
  model = transformers.AutoModelForCausalLM.from_config(
    config, trust_remote_code=True
  )
  assert model.wte.weight.std().item() == pytest.approx(0.02, rel=0.05)
