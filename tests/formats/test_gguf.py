"""GGUF files: exports, and what is read back."""

import dataclasses
import errno
import os

import jax
import numpy as np
import pytest

from gpt.errors import UserError
from gpt.formats.convert import export
from gpt.formats.gguf import file as gguf_file
from gpt.formats.gguf import read_gguf, write_gguf
from gpt.formats.gguf.vocabulary import tokenizer_keys
from gpt.formats.gguf.writer import TYPES
from gpt.model import GPTConfig
from gpt.runs.load import load_model
from tests.support.gguf_models import (
  MODELS,
  MORE,
  ROPE,
  SHAPE,
  TEXT,
  logits,
  model,
  small_bpe,
  some_ids,
  written,
)
from tests.support.llama_reference import LlamaReference
from tests.support.models import random_params
from tests.support.workdirs import launch, make_run


@pytest.fixture(scope='module')
def bpe():
  return small_bpe()


@pytest.mark.parametrize('more', [False, True], ids=['plain', 'more'])
@pytest.mark.parametrize('name', MODELS)
def test_a_model_read_back_has_the_same_logits(tmp_path, bpe, name, more):
  options = MORE[name] if more else {}
  cfg, params = model(name, bpe.vocab_size, **options)
  found, same, chosen = written(tmp_path / 'm.gguf', cfg, params, bpe)
  assert chosen == name
  ids = some_ids(cfg)
  np.testing.assert_allclose(
    logits(same, found.params, ids), logits(cfg, params, ids), atol=2e-5
  )


@pytest.mark.parametrize('name', MODELS)
def test_import_and_export_give_an_equal_file(tmp_path, bpe, name):
  cfg, params = model(name, bpe.vocab_size, **MORE[name])
  found, same, _ = written(tmp_path / 'a.gguf', cfg, params, bpe)
  assert same == dataclasses.replace(cfg, norm_gain=True)
  jax.tree.map(np.testing.assert_array_equal, found.params, dict(params))
  keys = tokenizer_keys(found.tokenizer)
  write_gguf(tmp_path / 'b.gguf', same, found.params, keys, 'f32', 'test')
  assert (tmp_path / 'b.gguf').read_bytes() == (
    tmp_path / 'a.gguf'
  ).read_bytes()


@pytest.mark.parametrize('tied', [False, True])
def test_the_norm_of_embeddings_is_folded_into_the_table(tmp_path, bpe, tied):
  cfg, params = model(
    'qwen3', bpe.vocab_size, embed_norm=True, tied_embeddings=tied
  )
  found, same, name = written(tmp_path / 'm.gguf', cfg, params, bpe)
  assert (name, same.embed_norm, same.tied_embeddings) == (
    'qwen3',
    False,
    False,
  )
  ids = some_ids(cfg)
  np.testing.assert_allclose(
    logits(same, found.params, ids), logits(cfg, params, ids), atol=2e-5
  )


@pytest.mark.parametrize(
  'dtype, bound',
  [('f16', 2.0**-11), ('bf16', 2.0**-8), ('q8_0', 1 / 127)],
)
def test_matrices_are_rounded_and_vectors_are_not(tmp_path, bpe, dtype, bound):
  cfg, params = model('llama', bpe.vocab_size, norm_gain=True)
  found, *_ = written(tmp_path / 'm.gguf', cfg, params, bpe, dtype)
  for path, x in jax.tree_util.tree_leaves_with_path(found.params):
    exact = params
    for key in path:
      exact = exact[key.key]
    # Relative to the largest of a block of 32 for q8_0, of the number else.
    scale = np.abs(exact).max() if dtype == 'q8_0' else np.abs(exact)
    assert (np.abs(x - exact) <= bound * scale + 1e-7).all()
    assert (x == exact).all() == (x.ndim == 1)


def test_rows_that_q8_0_cannot_divide_are_half_precision(tmp_path, bpe):
  cfg, params = model('llama', bpe.vocab_size, mlp_width=40)
  written(tmp_path / 'm.gguf', cfg, params, bpe, 'q8_0')
  found = gguf_file.GgufFile(tmp_path / 'm.gguf')
  assert found.tensors['blk.0.ffn_up.weight'].type == TYPES['q8_0'].number
  assert found.tensors['blk.0.ffn_down.weight'].type == TYPES['f16'].number


def test_weights_may_stay_bfloat16_in_memory(tmp_path, bpe):
  cfg, params = model('llama', bpe.vocab_size)
  written(tmp_path / 'm.gguf', cfg, params, bpe, 'bf16')
  exact = read_gguf(tmp_path / 'm.gguf').params
  half = read_gguf(tmp_path / 'm.gguf', 'bfloat16').params
  for a, b in zip(jax.tree.leaves(half), jax.tree.leaves(exact)):
    assert a.dtype.name == 'bfloat16'
    np.testing.assert_array_equal(a.astype(np.float32), b)


def test_the_model_computes_what_an_independent_reference_computes(
  tmp_path, bpe
):
  cfg, params = model(
    'llama', bpe.vocab_size, norm_gain=True, mlp_width=96, rope_base=1e5
  )
  found, same, _ = written(tmp_path / 'm.gguf', cfg, params, bpe, 'q8_0')
  ids = some_ids(cfg)
  reference = LlamaReference(tmp_path / 'm.gguf')
  np.testing.assert_allclose(
    logits(same, found.params, ids[:1])[0], reference.logits(ids[0]), atol=2e-4
  )


@pytest.mark.parametrize(
  'options, reason',
  [
    ({**ROPE, 'mlp': 'relu'}, 'model.mlp'),
    ({**ROPE, 'mlp': 'relu2', 'qk_norm': True}, 'qwen3.*model.mlp'),
    ({'pos': 'rope', 'mlp': 'swiglu'}, 'model.final_norm'),
    ({'mlp': 'swiglu', 'final_norm': True}, 'model.pos'),
    ({**ROPE, 'mlp': 'swiglu', 'logit_softcap': 15.0}, '--drop_softcap'),
    (
      {
        **ROPE,
        'mlp': 'swiglu',
        'qk_norm': True,
        'rope_scaling': 'llama3:8,1,4,8192',
      },
      'llama.*model.qk_norm',
    ),
  ],
)
def test_what_no_architecture_computes_is_refused_by_option(
  tmp_path, bpe, options, reason
):
  cfg = GPTConfig(vocab_size=bpe.vocab_size, **{**SHAPE, **options})
  params = jax.device_get(random_params(cfg))
  with pytest.raises(UserError, match=reason):
    write_gguf(
      tmp_path / 'm.gguf', cfg, params, tokenizer_keys(bpe), 'f32', 'test'
    )
  assert not list(tmp_path.iterdir())


# --- the launcher


@pytest.fixture(scope='module')
def chat_run(tmp_path_factory, bpe):
  workdir = tmp_path_factory.mktemp('runs') / 'chat'
  rng = np.random.default_rng(0)
  make_run(
    workdir,
    bpe,
    lambda name, shape: rng.normal(0, 0.3, shape),
    data={'format': 'chat'},
    **MODELS['llama'],
  )
  return workdir


def test_export_writes_a_model_and_a_modelfile(tmp_path, chat_run, bpe):
  output = tmp_path / 'chat.gguf'
  out, _ = launch(
    'export',
    f'--workdir={chat_run}',
    '--format=gguf',
    f'--output={output}',
    '--dtype=q8_0',
  )
  assert 'architecture llama' in out and 'q8_0: rounding' in out
  assert sorted(p.name for p in tmp_path.iterdir()) == [
    'chat.Modelfile',
    'chat.gguf',
  ]
  text = (tmp_path / 'chat.Modelfile').read_text()
  assert text.startswith('FROM ./chat.gguf\nTEMPLATE """{{ if .System }}<bos>')
  assert 'PARAMETER stop "<end_turn>"\n' in text
  assert 'PARAMETER num_ctx 32\n' in text
  loaded = load_model(chat_run)
  found = read_gguf(output)
  assert found.tokenizer.special_tokens == bpe.special_tokens
  np.testing.assert_array_equal(found.tokenizer.encode(TEXT), bpe.encode(TEXT))
  assert found.chat_template == ''  # Our own format needs none.
  assert found.options['n_embd'] == loaded.cfg.n_embd


@pytest.mark.parametrize('failing', [1, 2])
def test_an_export_that_fails_leaves_neither_file(
  chat_run, tmp_path, monkeypatch, failing
):
  left, sync = [failing], os.fsync

  def full(file):
    left[0] -= 1
    if not left[0]:
      raise OSError(errno.ENOSPC, 'No space left on device')
    sync(file)

  monkeypatch.setattr('os.fsync', full)
  with pytest.raises(UserError, match='No space left'):
    export(chat_run, 'best', 'gguf', tmp_path / 'm.gguf')
  assert not list(tmp_path.iterdir())


def test_export_refuses_to_overwrite_and_wrong_names(tmp_path, chat_run):
  output = tmp_path / 'chat.gguf'
  (tmp_path / 'chat.Modelfile').write_text('mine')
  with pytest.raises(UserError, match=r'chat\.Modelfile exists'):
    export(chat_run, 'best', 'gguf', output)
  with pytest.raises(UserError, match=r'must end in \.gguf'):
    export(chat_run, 'best', 'gguf', tmp_path / 'chat.bin')
  assert not output.exists()
  export(chat_run, 'best', 'gguf', output, overwrite=True)
  assert (tmp_path / 'chat.Modelfile').read_text() != 'mine'


def test_a_soft_cap_is_left_out_only_on_request(tmp_path, bpe):
  rng = np.random.default_rng(0)
  make_run(
    tmp_path / 'run',
    bpe,
    lambda name, shape: rng.normal(0, 0.1, shape),
    logit_softcap=15.0,
    **MODELS['llama'],
  )
  with pytest.raises(UserError, match='--drop_softcap'):
    export(tmp_path / 'run', 'best', 'gguf', tmp_path / 'm.gguf')
  *_, notes = export(
    tmp_path / 'run', 'best', 'gguf', tmp_path / 'm.gguf', drop_softcap=True
  )
  assert any('without the soft cap of 15' in note for note in notes)
