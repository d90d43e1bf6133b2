"""Each option of GPTConfig has one kind, and all code treats it accordingly."""

import ast
import dataclasses
import pathlib

import jax
import numpy as np
import pytest

from configs import default
from gpt.errors import UserError
from gpt.formats import hf_code, model_card, randygpt
from gpt.formats.hf_names import OPTIONS
from gpt.formats.huggingface import own_entries
from gpt.model import GPT, GPTConfig, abstract_params
from gpt.model.config import (
  describe_options,
  option_names,
  option_rows,
  unrepresentable,
)
from gpt.model.options import (
  FORMATS,
  FUNCTION,
  INIT,
  KINDS,
  RUNTIME,
  SHAPE,
  Option,
)
from gpt.runs import info, weights
from gpt.runs.config_file import is_fixed
from gpt.tokenizers import CharTokenizer
from tests.support.models import random_params
from tests.support.workdirs import make_run

TINY = dict(vocab_size=11, n_embd=8, n_head=2, n_layer=2, block_size=6)
# A value of each option that differs from that of TINY. A new option needs one.
OTHER = {
  'vocab_size': 12,
  'n_embd': 16,
  'n_head': 4,
  'n_layer': 3,
  'block_size': 7,
  'arch': 'microgpt',
  'dropout': 0.5,
  'mlp': 'gelu',
  'pos': 'rope',
  'n_kv_head': 1,
  'head_dim': 6,
  'mlp_width': 20,
  'rope_base': 5.0,
  'rope_scaling': 'linear:4',
  'norm': 'layer',
  'norm_gain': True,
  'norm_eps': 0.5,
  'bias': True,
  'embed_norm': True,
  'qk_norm': True,
  'qk_gain': True,
  'exclusive_attention': True,
  'final_norm': True,
  'logit_softcap': 3.0,
  'tied_embeddings': True,
  'zero_init': True,
  'init_std': 0.3,
  'dtype': 'bfloat16',
  'param_dtype': 'bfloat16',
  'attention': 'blocked',
  'remat': True,
}
# What an option needs beside it.
NEEDS = {
  'rope_base': {'pos': 'rope'},
  'rope_scaling': {'pos': 'rope'},
  'qk_gain': {'qk_norm': True},
}
FIELDS = {field.name: field for field in dataclasses.fields(GPTConfig)}
CODE = pathlib.Path(hf_code.__path__[0])


def base(**changes) -> GPTConfig:
  return GPTConfig(**(TINY | changes))


def pair(name) -> tuple[GPTConfig, GPTConfig]:
  """Two models that differ in one option alone."""
  needed = NEEDS.get(name, {})
  return base(**needed), base(**needed, **{name: OTHER[name]})


def of_kind(*kinds):
  return pytest.mark.parametrize(
    'name',
    [
      name
      for name, field in FIELDS.items()
      if field.metadata.get('option') and field.metadata['option'].kind in kinds
    ],
  )


def shapes(cfg):
  return jax.tree.map(np.shape, abstract_params(cfg))


def initial_params(cfg):
  tokens = np.zeros((1, 1), np.int32)
  return GPT(cfg).init(jax.random.key(0), tokens)['params']


def logits(cfg, params):
  tokens = np.arange(6, dtype=np.int32)[None]
  return np.asarray(GPT(cfg).apply({'params': params}, tokens))


# --- the table


@pytest.mark.parametrize('name', FIELDS)
def test_each_option_has_one_kind_and_known_formats(name):
  found = FIELDS[name].metadata.get('option')
  assert isinstance(found, Option), f'declare {name} with option(KIND, ...)'
  assert found.kind in KINDS and set(found.holds) <= set(FORMATS)
  assert name in OTHER, f'OTHER above needs another value of {name}'


def test_the_names_are_those_of_the_default_config():
  model = default.get_config().model
  assert set(option_names()) == set(model.keys())
  by_kind = [set(option_names(kind)) for kind in KINDS]
  assert sorted(option_names()) == sorted(n for some in by_kind for n in some)


# --- the kinds are right


@of_kind(SHAPE)
def test_shape_options_change_the_shapes(name):
  one, two = pair(name)
  assert shapes(one) != shapes(two)


@of_kind(FUNCTION)
def test_function_options_change_what_the_same_weights_compute(name):
  one, two = pair(name)
  if shapes(one) != shapes(two):  # Rotary positions need no table.
    assert name == 'pos'
    return
  params = random_params(one, std=0.5)
  assert np.abs(logits(one, params) - logits(two, params)).max() > 1e-3


@of_kind(INIT)
def test_init_options_change_the_initial_weights_alone(name):
  one, two = base(n_layer=1), base(n_layer=1, **{name: OTHER[name]})
  params = initial_params(one)
  np.testing.assert_array_equal(logits(one, params), logits(two, params))
  other = initial_params(two)
  assert np.any(params['block_0']['wo'] != other['block_0']['wo'])


@of_kind(RUNTIME)
def test_runtime_options_change_neither_weights_nor_function(name):
  small = dict(n_layer=1, init_std=0.5)
  one, two = base(**small), base(**small, **{name: OTHER[name]})
  params = initial_params(one)
  other = initial_params(two)
  jax.tree.map(
    lambda x, y: np.testing.assert_array_equal(x.astype(y.dtype), y),
    params,
    other,
  )
  wanted, got = logits(one, params), logits(two, other)
  relative = 0.03 if 'dtype' in name else 1e-6  # bfloat16 has 8 bits.
  np.testing.assert_allclose(got, wanted, atol=relative * np.abs(wanted).max())


# --- resuming, and starting from other weights


@pytest.mark.parametrize('name', sorted(option_names()))
def test_only_runtime_options_may_change_in_a_run(name):
  free = name in option_names(RUNTIME)
  assert is_fixed(f'model.{name}', 'old', 'new') is not free


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('runs') / 'source'
  tiny = {k: v for k, v in TINY.items() if k not in ('vocab_size', 'n_embd')}
  make_run(
    workdir,
    CharTokenizer('abcdefghi'),
    lambda _, shape: np.zeros(shape),
    n_embd=8,
    **tiny,
  )
  return workdir


@pytest.mark.parametrize('name', sorted(option_names()))
def test_weights_are_taken_over_unless_shape_or_function_differ(name, source):
  cfg = base(**NEEDS.get(name, {}), **{name: OTHER[name]})
  if name in option_names(INIT, RUNTIME):
    weights.load_weights(source, cfg)
    return
  with pytest.raises(UserError, match='do not fit this config'):
    weights.load_weights(source, cfg)


# --- descriptions


@of_kind(SHAPE, FUNCTION)
def test_shape_and_function_options_are_described(name):
  plain, cfg = pair(name)
  line = info._architecture_line(dataclasses.asdict(cfg))
  was = info._architecture_line(dataclasses.asdict(plain))
  if name == 'vocab_size':  # Described with the tokenizer.
    assert line == was
    return
  assert line != was
  assert option_rows(cfg) != option_rows(plain)
  assert OTHER[name] in option_rows(cfg).values()


def test_only_options_that_are_set_are_described():
  found = describe_options(dataclasses.asdict(base(n_kv_head=2, remat=True)))
  assert found == [
    'randy',
    '2 layers x 8',
    '2 heads',
    'context 6',
    'MLP relu2',
    'positions learned',
    'float32',
  ]
  saved = {'arch': 'microgpt', 'n_kv_head': 2}  # A config with fewer keys.
  found = describe_options(saved, (SHAPE, FUNCTION))
  assert {'MLP relu', '2 key/value heads', 'embed_norm'} <= set(found)


def test_the_model_card_has_a_row_for_each_described_option(source):
  from gpt.runs.load import load_model

  loaded = load_model(source)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(model_card, 'sample', lambda loaded: ('', ''))
    card = model_card.card(loaded, source, None)
  for label, value in option_rows(loaded.cfg).items():
    assert f'| {label} | {value} |' in card


# --- file formats


@pytest.mark.parametrize('format', FORMATS)
def test_formats_refuse_each_network_they_cannot_represent(format):
  fits = base(arch='microgpt' if format == 'microgpt' else 'randy')
  assert unrepresentable(fits, format) == []
  for name, field in FIELDS.items():
    found = field.metadata['option']
    if found.kind not in (SHAPE, FUNCTION):
      continue
    other = 'randy' if name == 'arch' == fits.arch else OTHER[name]
    others = {'arch': fits.arch, **NEEDS.get(name, {}), name: other}
    cfg = base(**others)
    reasons = unrepresentable(cfg, format)
    allowed = found.holds.get(format, (getattr(fits, name),))
    holds = allowed is None or getattr(cfg, name) in allowed
    named = any(f'model.{name} is {other!r}, not ' in x for x in reasons)
    assert named is not holds, name


def test_rgpt_files_hold_randygpts_network_alone():
  refused = {
    name for name in option_names() if randygpt.obstacles(pair(name)[1])
  }
  assert refused == {
    'arch',
    'mlp',
    'pos',
    'n_kv_head',
    'head_dim',
    'mlp_width',
    'rope_base',
    'rope_scaling',
    'norm',
    'norm_gain',
    'norm_eps',
    'bias',
    'embed_norm',
    'qk_norm',
    'qk_gain',
    'exclusive_attention',
    'final_norm',
    'logit_softcap',
    'tied_embeddings',
  }
  assert randygpt.obstacles(base(n_kv_head=2)) == []  # As many as n_head.


def test_the_exported_configuration_has_exactly_the_options_of_the_format():
  """hf_code cannot import gpt, so its list is compared here."""
  tree = ast.parse((CODE / 'configuration_rgpt.py').read_text())
  (init,) = (
    node
    for node in ast.walk(tree)
    if isinstance(node, ast.FunctionDef) and node.name == '__init__'
  )
  names = [arg.arg for arg in init.args.args if arg.arg != 'self']
  values = [ast.literal_eval(value) for value in init.args.defaults]
  cfg = GPTConfig(vocab_size=67)
  expected = {
    OPTIONS.get(n, n): getattr(cfg, n) for n in option_names(format='hf')
  }
  assert dict(zip(names, values)) == expected | {
    'vocab_size': 67,
    'use_cache': True,
    'head_dim': 0,  # Derived, as in our own config.
    'mlp_width': 0,
  }
  stored = {
    node.attr
    for node in ast.walk(init)
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
  }
  assert stored == set(names)
  written = own_entries(cfg)
  assert {k: written[k] for k in expected} == expected


def test_the_exported_model_implements_each_option_and_each_value():
  tree = ast.parse((CODE / 'modeling_rgpt.py').read_text())
  used = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
  words = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)}
  for name in option_names(format='hf'):
    found = FIELDS[name].metadata['option']
    if name != 'arch':  # Its consequences are written out as other options.
      assert OPTIONS.get(name, name) in used, name
      assert set(found.holds['hf'] or ()) <= words, name
