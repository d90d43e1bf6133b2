"""Attention maps, token probabilities and PCA equal their definitions."""

import numpy as np
import pytest

from gpt.decoding import inspect
from gpt.model.norms import rms_norm
from gpt.model.transformer import GPT, GPTConfig
from gpt.tokenizers import CharTokenizer
from tests.support.models import random_params

CONFIGS = {
  'randy': {},
  'microgpt': {'arch': 'microgpt'},
  'grouped, rope': {
    'pos': 'rope',
    'n_kv_head': 2,
    'qk_norm': True,
    'remat': True,
    'attention': 'blocked',
  },
}


def build(**options):
  cfg = GPTConfig(
    vocab_size=20, n_embd=16, n_head=4, n_layer=2, block_size=12, **options
  )
  model = GPT(cfg)
  params = random_params(cfg, std=0.3)  # Uneven attention.
  tokens = np.random.default_rng(0).integers(0, 20, (3, 12))
  return model, params, tokens


@pytest.mark.parametrize('name', CONFIGS)
def test_attention_rows_are_distributions_over_the_past(name):
  model, params, tokens = build(**CONFIGS[name])
  probs = inspect.attention_probs(model, params, tokens)
  assert probs.shape == (2, 3, 4, 12, 12) and probs.dtype == np.float32
  np.testing.assert_allclose(probs.sum(-1), 1, atol=1e-5)
  assert (np.triu(probs, 1) == 0).all() and (probs >= 0).all()
  assert probs.std() > 0.05


def test_attention_probs_reproduce_the_attention_output():
  """By definition: the residual stream after the first attention."""
  model, params, tokens = build()
  probs = inspect.attention_probs(model, params, tokens)[0]
  block = params['block_0']
  x = params['wte'][tokens] + params['wpe'][None]
  v = (rms_norm(x) @ block['wv']).reshape(3, 12, 4, 4)
  mixed = np.einsum('BHLS,BSHK->BLHK', probs, v).reshape(3, 12, 16)
  wanted = x + mixed @ block['wo']
  alone = {**params, 'block_0': {**block, 'fc2': 0 * block['fc2']}}
  one = GPT(
    GPTConfig(**{**model.cfg.__dict__, 'n_layer': 1, 'attention': 'plain'})
  )
  del alone['block_1']
  found = one.apply({'params': alone}, tokens, head=False)
  np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_next_probs_are_the_softmax_of_the_logits():
  model, params, tokens = build()
  probs = inspect.next_probs(model, params, tokens)
  logits = np.asarray(model.apply({'params': params}, tokens), np.float64)
  wanted = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  np.testing.assert_allclose(probs, wanted, rtol=1e-4, atol=1e-7)


def test_top_tokens_are_readable_text():
  tokenizer = CharTokenizer('ab\n\u00e9')
  probs = np.array([0.0, 0.1, 0.4, 0.3, 0.15, 0.05])
  assert inspect.top_tokens(tokenizer, probs, 4) == [
    ('\\n', 0.4),
    ('a', 0.3),
    ('b', 0.15),
    ('<|eos|>', 0.1),
  ]


def test_partial_utf8_is_shown_as_escaped_bytes():
  class Bytes:
    special_tokens = {'<|bos|>': 0}

    def token_bytes(self, id):
      return b'\xc3'

  assert inspect.token_text(Bytes(), 5) == '\\xc3'
  assert inspect.token_text(Bytes(), 0) == '<|bos|>'


def test_principal_plane_finds_the_directions_of_largest_variance():
  rng = np.random.default_rng(0)
  spread = rng.normal(size=(200, 3)) * [5.0, 2.0, 0.01]
  turned = spread @ np.linalg.qr(rng.normal(size=(3, 3)))[0]
  plane, share = inspect.principal_plane(turned)
  assert share[0] > share[1] > 0.05 and share.sum() > 0.999
  np.testing.assert_allclose(
    np.abs(plane), np.abs(spread - spread.mean(0))[:, :2], atol=0.5
  )
  one, share = inspect.principal_plane(np.ones((1, 4)))
  assert one.shape == (1, 2) and not share.any()
