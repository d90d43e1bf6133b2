"""Exported adapters: their files, and what the peft library makes of them."""

import json
import warnings

import jax
import numpy as np
import pytest

from gpt.errors import UserError
from gpt.formats import model_card
from gpt.formats.convert import export
from gpt.runs import checkpoint
from gpt.runs.load import load_model
from tests.support.export_tools import bpe, random_weights  # noqa: F401
from tests.support.lora_tools import write_adapters
from tests.support.workdirs import make_run

ROPE = {'pos': 'rope', 'final_norm': True, 'norm_gain': True}
MODELS = {
  'llama': {**ROPE, 'mlp': 'swiglu', 'n_kv_head': 2, 'mlp_width': 48},
  'qwen3': {
    **ROPE,
    'mlp': 'swiglu',
    'qk_norm': True,
    'qk_gain': True,
    'head_dim': 16,
  },
  'arcee': {**ROPE, 'mlp': 'relu2', 'tied_embeddings': True},
  'nanochat': {
    'pos': 'rope',
    'final_norm': True,
    'qk_norm': True,
    'embed_norm': True,
    'mlp': 'relu2',
    'logit_softcap': 15.0,
  },
  'gpt2': {
    'mlp': 'gelu',
    'norm': 'layer',
    'norm_gain': True,
    'bias': True,
    'final_norm': True,
    'tied_embeddings': True,
  },
}


def make(root, tokenizer, name, targets='all'):
  """(workdir of the base, workdir of its adapters)."""
  make_run(root / 'base', tokenizer, random_weights(1, 0.15), **MODELS[name])
  write_adapters(root / 'tuned', root / 'base', std=0.2, targets=targets)
  return root / 'base', root / 'tuned'


def test_files_have_the_names_and_shapes_of_peft(tmp_path, bpe):  # noqa: F811
  _, tuned = make(tmp_path, bpe, 'llama', 'wq,fc2')
  export(tuned, 'best', 'peft', tmp_path / 'out')
  config = json.loads((tmp_path / 'out/adapter_config.json').read_text())
  assert config['target_modules'] == ['mlp.down_proj', 'self_attn.q_proj']
  assert (config['r'], config['lora_alpha']) == (2, 8.0)
  path = tmp_path / 'out' / 'adapter_model.safetensors'
  import safetensors.numpy

  tensors = safetensors.numpy.load_file(path)
  prefix = 'base_model.model.model.layers.0'
  assert tensors[f'{prefix}.self_attn.q_proj.lora_A.weight'].shape == (2, 32)
  assert tensors[f'{prefix}.mlp.down_proj.lora_B.weight'].shape == (32, 2)
  assert len(tensors) == 8
  saved = checkpoint.restore_params(checkpoint.find(tuned))
  np.testing.assert_array_equal(
    tensors['base_model.model.model.layers.1.mlp.down_proj.lora_A.weight'],
    saved['block_1']['fc2']['a'].T,
  )


def test_what_peft_cannot_hold_is_refused(tmp_path, bpe):  # noqa: F811
  base, tuned = make(tmp_path, bpe, 'llama')
  with pytest.raises(UserError, match='holds no adapters'):
    export(base, 'best', 'peft', tmp_path / 'out')
  make_run(tmp_path / 'randy', bpe, random_weights())
  write_adapters(tmp_path / 'own', tmp_path / 'randy')
  with pytest.raises(UserError, match='need a class of transformers'):
    export(tmp_path / 'own', 'best', 'peft', tmp_path / 'out')
  assert not (tmp_path / 'out').exists()
  export(tuned, 'best', 'peft', tmp_path / 'out')
  with pytest.raises(UserError, match='--overwrite'):
    export(tuned, 'best', 'peft', tmp_path / 'out')
  export(tuned, 'best', 'peft', tmp_path / 'out', overwrite=True)


def test_an_export_that_fails_leaves_nothing(tmp_path, bpe, monkeypatch):  # noqa: F811
  def full(*args):
    raise OSError(28, 'No space left on device')

  _, tuned = make(tmp_path, bpe, 'llama')
  before = sorted(tmp_path.iterdir())
  monkeypatch.setattr('os.fsync', full)
  with pytest.raises(UserError, match='No space left'):
    export(tuned, 'best', 'peft', tmp_path / 'new' / 'out')
  assert sorted(tmp_path.iterdir()) == before


@pytest.mark.slow
@pytest.mark.filterwarnings('default')
@pytest.mark.parametrize(
  'name, targets',
  [*((name, 'all') for name in MODELS), ('gpt2', 'wk,wo'), ('llama', 'wv,fc1')],
)
def test_peft_gives_our_logits(tmp_path, bpe, name, targets):  # noqa: F811
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    reason = 'transformers, PyTorch and peft are needed'
    torch = pytest.importorskip('torch', reason=reason)
    transformers = pytest.importorskip('transformers', reason=reason)
    peft = pytest.importorskip('peft', reason=reason)
  base, tuned = make(tmp_path, bpe, name, targets)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(model_card, 'sample', lambda loaded: ('', ''))
    export(base, 'best', 'hf', tmp_path / 'hf', hf_class=name)
  export(tuned, 'best', 'peft', tmp_path / 'peft', hf_class=name)
  model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'hf')
  model = peft.PeftModel.from_pretrained(model, tmp_path / 'peft').eval()
  loaded = load_model(tuned)
  ids = np.random.default_rng(0).integers(0, loaded.cfg.vocab_size, (2, 32))
  forward = jax.jit(loaded.model.apply)
  ours = np.asarray(forward({'params': loaded.params}, ids.astype(np.int32)))
  plain = np.asarray(
    forward({'params': load_model(base).params}, ids.astype(np.int32))
  )
  assert np.abs(ours - plain).max() > 0.1  # The adapters matter.
  with torch.no_grad():
    theirs = model(torch.tensor(ids)).logits.numpy()
  np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-4)
