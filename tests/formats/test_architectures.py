"""Other programs' models, described by tables: both directions agree."""

import dataclasses
import itertools
import json

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt.errors import UserError
from gpt.formats import architectures
from gpt.formats.architectures import FAMILIES
from gpt.formats.hf_names import hf_tensor_name, tensor_name
from gpt.formats.tensors import to_tensors
from gpt.model import GPT, GPTConfig, abstract_params

BASE = {'vocab_size': 11, 'n_embd': 8, 'n_head': 2, 'n_layer': 2}
SMALL = BASE | {'block_size': 16}
ROPE = {'pos': 'rope', 'final_norm': True}
# A model of each family, with options away from their defaults.
MODELS = {
  'llama': {**ROPE, 'mlp': 'swiglu', 'norm_gain': True, 'n_kv_head': 1},
  'qwen3': {
    **ROPE,
    'mlp': 'swiglu',
    'norm_gain': True,
    'qk_norm': True,
    'qk_gain': True,
    'head_dim': 6,
    'tied_embeddings': True,
    'norm_eps': 1e-6,
  },
  'gpt2': {
    'mlp': 'gelu',
    'norm': 'layer',
    'norm_gain': True,
    'bias': True,
    'final_norm': True,
    'tied_embeddings': True,
    'mlp_width': 12,
  },
  'arcee': {
    **ROPE,
    'mlp': 'relu2',
    'norm_gain': True,
    'bias': True,
    'rope_base': 5e5,
    'rope_scaling': 'llama3:8,1,4,8',
  },
  'nanochat': {
    **ROPE,
    'mlp': 'relu2',
    'embed_norm': True,
    'qk_norm': True,
    'logit_softcap': 15.0,
    'rope_scaling': 'linear:2.5',
  },
}


def model(name, **options):
  return GPTConfig(**SMALL | MODELS[name] | options)


def random_params(cfg, seed=0):
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32),
    dict(abstract_params(cfg)),
  )


def logits(cfg, params):
  ids = np.random.default_rng(1).integers(0, cfg.vocab_size, (2, 16))
  forward = jax.jit(GPT(cfg).apply)
  return np.asarray(forward({'params': params}, ids.astype(np.int32)))


class Memory:
  """Tensors in memory, as from_hf_tensors reads them."""

  def __init__(self, tensors):
    self.tensors = dict(tensors)
    self.shapes = {name: x.shape for name, x in self.tensors.items()}

  def read(self, name):
    return self.tensors[name]


def read_back(name, cfg, tensors, dtype=np.float32):
  return architectures.from_hf_tensors(
    FAMILIES[name], cfg, Memory(tensors), 'files', dtype
  )


# --- both directions


@pytest.mark.parametrize('name', MODELS)
@pytest.mark.parametrize('tied', [False, True])
def test_a_config_read_back_is_the_same_model(name, tied):
  cfg = model(name, tied_embeddings=tied)
  family, reasons = architectures.choose(cfg)
  assert family is FAMILIES[name] and not reasons
  written = json.loads(json.dumps(family.write_config(cfg)))
  again, options = architectures.from_hf_config(written, 'config.json')
  assert again is family
  assert GPTConfig(**options) == dataclasses.replace(cfg, dropout=0.0)


@pytest.mark.parametrize('name', MODELS)
@pytest.mark.parametrize('tied', [False, True])
def test_tensors_read_back_have_the_same_bits(name, tied):
  cfg = model(name, tied_embeddings=tied)
  params = random_params(cfg)
  tensors = dict(architectures.to_hf_tensors(FAMILIES[name], cfg, params))
  assert ('lm_head.weight' in tensors) == (not tied)
  found = read_back(name, cfg, tensors)
  assert jax.tree.structure(found) == jax.tree.structure(params)
  jax.tree.map(np.testing.assert_array_equal, found, params)


def test_every_parameter_has_a_row_in_each_family_that_holds_it():
  for name, bias in itertools.product(MODELS, (False, True)):
    cfg = model(name)
    if FAMILIES[name].fits('bias', bias, cfg):
      cfg = dataclasses.replace(cfg, bias=bias)
    params = random_params(cfg)
    rows = dict(architectures.to_hf_tensors(FAMILIES[name], cfg, params))
    sizes = [sum(x.size for x in jax.tree.leaves(t)) for t in (rows, params)]
    assert sizes[0] == sizes[1], name


def test_files_without_the_prefix_of_the_base_model_are_read():
  """GPT-2's own files begin with 'h.0', those of GPT2LMHeadModel do not."""
  cfg = model('gpt2')
  params = random_params(cfg)
  tensors = architectures.to_hf_tensors(FAMILIES['gpt2'], cfg, params)
  bare = {name.removeprefix('transformer.'): x for name, x in tensors}
  assert 'h.0.attn.c_attn.weight' in bare
  found = read_back('gpt2', cfg, bare)
  jax.tree.map(np.testing.assert_array_equal, found, params)


def test_buffers_of_older_files_are_no_weights():
  for name, buffers in {
    'gpt2': ('h.0.attn.bias', 'transformer.h.1.attn.masked_bias'),
    'llama': ('model.layers.0.self_attn.rotary_emb.inv_freq',),
  }.items():
    cfg = model(name)
    params = random_params(cfg)
    tensors = dict(architectures.to_hf_tensors(FAMILIES[name], cfg, params))
    tensors |= dict.fromkeys(buffers, np.ones(3, np.uint8))
    found = read_back(name, cfg, tensors)
    jax.tree.map(np.testing.assert_array_equal, found, params)


def test_weights_may_stay_bfloat16():
  cfg = model('nanochat')
  params = random_params(cfg)
  tensors = architectures.to_hf_tensors(FAMILIES['nanochat'], cfg, params)
  half = {name: x.astype(ml_dtypes.bfloat16) for name, x in tensors}
  found = read_back('nanochat', cfg, half, ml_dtypes.bfloat16)
  rounded = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), params)
  jax.tree.map(np.testing.assert_array_equal, found, rounded)
  kinds = {x.dtype.name for x in jax.tree.leaves(found)}
  assert kinds == {'bfloat16'}


def test_a_tied_head_may_be_stored_again_but_not_another_head():
  cfg = model('gpt2')
  params = random_params(cfg)
  family = FAMILIES['gpt2']
  tensors = dict(architectures.to_hf_tensors(family, cfg, params))
  tensors['lm_head.weight'] = tensors['transformer.wte.weight'].copy()
  found = read_back('gpt2', cfg, tensors)
  jax.tree.map(np.testing.assert_array_equal, found, params)
  tensors['lm_head.weight'][3, 3] += 1
  with pytest.raises(UserError, match='ties the head .*differs'):
    read_back('gpt2', cfg, tensors)


def test_tensors_that_do_not_fit_are_named():
  cfg = model('llama')
  family = FAMILIES['llama']
  whole = dict(architectures.to_hf_tensors(family, cfg, random_params(cfg)))
  q = 'model.layers.1.self_attn.q_proj.weight'
  lost = {k: x for k, x in whole.items() if k != q}
  for tensors, message in (
    (lost, r'q_proj.weight is missing: expected \(8, 8\)'),
    (whole | {q: np.ones((8, 4))}, r'found \(8, 4\)'),
    (whole | {'score.weight': np.ones(2)}, r"unexpected tensor 'score.weight'"),
    ({k: x for k, x in whole.items() if 'layers.1' not in k}, 'of 1$'),
    (
      {k: x for k, x in whole.items() if k != 'lm_head.weight'},
      'lm_head.weight is missing',
    ),
  ):
    with pytest.raises(UserError, match=message):
      read_back('llama', cfg, tensors)


def test_a_wrong_number_of_layers_is_refused_before_it_is_believed():
  cfg = model('llama')
  family = FAMILIES['llama']
  tensors = architectures.to_hf_tensors(family, cfg, random_params(cfg))
  huge = dataclasses.replace(cfg, n_layer=4096)
  with pytest.raises(UserError, match='4096 layers, .* of 2'):
    read_back('llama', huge, tensors)


def test_names_in_our_own_code_stand_for_one_tensor_each():
  cfg = GPTConfig(
    **SMALL,
    mlp='swiglu',
    norm='layer',
    norm_gain=True,
    bias=True,
    embed_norm=True,
    final_norm=True,
    qk_norm=True,
    qk_gain=True,
  )
  ours = list(to_tensors(random_params(cfg)))
  theirs = [hf_tensor_name(name) for name in ours]
  assert [tensor_name(name) for name in theirs] == ours
  assert 'layers.1.attn_wq.bias' in theirs and 'final_norm.bias' in theirs
  assert len(set(theirs)) == len(ours) == 1 + 1 + 1 + 2 * 2 + 2 * 20


# --- a class for ours


@st.composite
def any_model(draw):
  def pick(*values):
    return draw(st.sampled_from(values))

  qk_norm = draw(st.booleans())
  pos = pick('learned', 'rope')
  scaled = {'rope_base': pick(1e4, 5e5), 'rope_scaling': pick('', 'linear:2')}
  return GPTConfig(
    **SMALL,
    **(scaled if pos == 'rope' else {}),
    arch=pick('randy', 'microgpt'),
    mlp=pick('relu2', 'relu', 'gelu', 'swiglu'),
    pos=pos,
    n_kv_head=pick(0, 1),
    head_dim=pick(0, 6),
    mlp_width=pick(0, 12),
    norm=pick('rms', 'layer'),
    norm_gain=draw(st.booleans()),
    norm_eps=pick(1e-5, 1e-6),
    bias=draw(st.booleans()),
    embed_norm=draw(st.booleans()),
    qk_norm=qk_norm,
    qk_gain=qk_norm and draw(st.booleans()),
    final_norm=draw(st.booleans()),
    logit_softcap=pick(0.0, 15.0),
    tied_embeddings=draw(st.booleans()),
  )


@settings(max_examples=400, deadline=None)
@given(any_model())
def test_a_model_has_a_class_or_the_option_that_prevents_it(cfg):
  family, reasons = architectures.choose(cfg)
  assert (family is None) == bool(reasons)
  for reason in reasons:
    option = reason.split('model.')[1].split()[0]
    assert hasattr(cfg, option) and repr(getattr(cfg, option)) in reason
  if family:
    near, _ = architectures.conform(family, cfg, random_params(cfg))
    written = json.loads(json.dumps(family.write_config(near)))
    found = GPTConfig(**architectures.from_hf_config(written, 'c.json')[1])
    assert found == near


OURS = {
  'llama': {**ROPE, 'mlp': 'swiglu'},
  'llama, tied embed_norm': {
    **ROPE,
    'mlp': 'swiglu',
    'embed_norm': True,
    'tied_embeddings': True,
    'norm_gain': True,
  },
  'qwen3': {**ROPE, 'mlp': 'swiglu', 'qk_norm': True, 'embed_norm': True},
  'gpt2': {'mlp': 'relu2', 'norm': 'layer', 'final_norm': True},
  'gpt2, biases': {
    'mlp': 'relu2',
    'norm': 'layer',
    'final_norm': True,
    'bias': True,
  },
  'arcee': {**ROPE, 'mlp': 'relu', 'arch': 'microgpt'},
  'nanochat': {**ROPE, 'qk_norm': True, 'arch': 'microgpt'},
}


@pytest.mark.parametrize('name', OURS)
def test_the_model_that_is_written_computes_the_same(name):
  cfg = GPTConfig(**SMALL, **OURS[name])
  params = random_params(cfg)
  family, reasons = architectures.choose(cfg)
  assert not reasons and family.model_type == name.split(',')[0]
  near, changed = architectures.conform(family, cfg, params)
  one, two = logits(cfg, params), logits(near, changed)
  assert one.std() > 0.05
  np.testing.assert_allclose(two, one, atol=2e-6)


@pytest.mark.parametrize('name', ['llama', 'gpt2', 'gpt2, biases', 'nanochat'])
def test_what_a_class_added_is_removed_again(name):
  cfg = GPTConfig(**SMALL, **OURS[name])
  params = random_params(cfg)
  family, _ = architectures.choose(cfg)
  near, changed = architectures.conform(family, cfg, params)
  tensors = architectures.to_hf_tensors(family, near, changed)
  read = read_back(family.model_type, near, tensors)
  found, back = architectures.simplify(near, read, dataclasses.asdict(cfg))
  assert found == cfg
  jax.tree.map(np.testing.assert_array_equal, back, params)


def test_gains_that_were_trained_elsewhere_stay():
  cfg = GPTConfig(**SMALL, **OURS['llama'])
  family, _ = architectures.choose(cfg)
  near, changed = architectures.conform(family, cfg, random_params(cfg))
  changed['block_1']['mlp_norm'][0] = 1.25
  found, back = architectures.simplify(near, changed, dataclasses.asdict(cfg))
  assert found.norm_gain and back['block_1']['mlp_norm'][0] == 1.25
