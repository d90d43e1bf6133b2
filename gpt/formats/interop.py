"""Weights under the names other programs know, and microgpt's directories.

Files hold matrices as [out, in]; ours are [in, out]. Tensors are named as
microgpt names them: `wte`, `wpe`, `lm_head`, `layer0.attn_wq`, ...

A microgpt model has one token, `<bos>`, at both ends of a document, and its
control tokens are ids 0 to 3. For a tokenizer with an EOS of its own the rows
are put in that order, and BOS and EOS become one row: the embedding is that of
BOS (all that is ever fed), the head that of the token documents end with (EOS;
BOS in chat data). Tokens without a meaning (pad, unk) go. The probabilities are
then those of our sampler, which bans what is left out.
"""

import dataclasses
import json
import pathlib
from typing import Any

import jax
import numpy as np

from gpt.errors import UserError, explained_writes
from gpt.files import write_atomic
from gpt.formats import safetensors_file, tokenizer_json
from gpt.model import GPT, GPTConfig, abstract_params
from gpt.model.config import unrepresentable
from gpt.tokenizers import Tokenizer
from gpt.tokenizers.base import EOS
from gpt.tokenizers.chat_format import CHAT_TOKENS, is_chat_tokenizer
from gpt.tokenizers.huggingface import our_name, read_hf_json, their_name

LEAVES = {
  'wq': 'attn_wq',
  'wk': 'attn_wk',
  'wv': 'attn_wv',
  'wo': 'attn_wo',
  'fc1': 'mlp_fc1',
  'gate': 'mlp_gate',
  'fc2': 'mlp_fc2',
}
TABLES = ('wte', 'wpe', 'lm_head')
WEIGHTS, META, TOKENIZER = 'weights.safetensors', 'meta.json', 'tokenizer.json'
META_SHAPE = ('n_embd', 'n_head', 'n_layer', 'block_size')
PROBE_SHAPE = (4, 256)  # Rows and most columns of the half precision probe.


@dataclasses.dataclass
class Foreign:
  """A model from elsewhere.

  shape: the keys of `config.model` that it fixes.
  params: float32 numpy tree of our model.
  extra: what else the directory tells (see hf_directory).
  """

  shape: dict
  params: Any
  tokenizer: Tokenizer
  extra: dict = dataclasses.field(default_factory=dict)


def to_tensors(params) -> dict[str, np.ndarray]:
  """Our parameter tree under the files' names, matrices as [out, in]."""
  tensors = {}
  for name, value in params.items():
    if name in TABLES:
      tensors[name] = np.asarray(value)
      continue
    layer = name.replace('block_', 'layer')
    for leaf, x in value.items():
      tensors[f'{layer}.{LEAVES[leaf]}'] = np.asarray(x).T
  return tensors


def from_tensors(tensors, cfg: GPTConfig, source) -> dict:
  """The parameter tree of `cfg`, float32.

  Raises:
    UserError: tensors or shapes that are not those of the config.
  """
  wanted = {name: x.shape for name, x in to_tensors(_zeros(cfg)).items()}
  for name in sorted(wanted.keys() | tensors.keys()):
    given = tensors[name].shape if name in tensors else 'not there'
    if given != wanted.get(name):
      raise UserError(
        f'{source}: {name} is {given}, by the config it is '
        f'{wanted.get(name, "no tensor of this model")}'
      )
  ours = {leaf: name for name, leaf in LEAVES.items()}
  params: dict[str, Any] = {}
  for name, x in tensors.items():
    layer, _, leaf = name.partition('.')
    x = np.asarray(x, np.float32)
    if leaf:
      block = params.setdefault(layer.replace('layer', 'block_'), {})
      block[ours[leaf]] = np.ascontiguousarray(x.T)
    else:
      params[name] = x
  return params


def _zeros(cfg: GPTConfig):
  """Shapes only: zeros that take no memory."""

  def zeros(tree):
    if isinstance(tree, dict):
      return {name: zeros(x) for name, x in tree.items()}
    return np.broadcast_to(np.float32(0), tree.shape)

  return zeros(dict(abstract_params(cfg)))


def rounding_report(cfg: GPTConfig, params, dtype: str) -> dict:
  """What rounding the weights does to the logits, computed in float32.

  Over up to 4 x 256 positions of random tokens (seeded).

  Returns:
    'max_error' (largest difference of a logit), 'max_logit' (the largest one),
    'same_argmax' (share of positions with the same likeliest token).
  """
  cfg = dataclasses.replace(
    cfg, dtype='float32', attention='plain', dropout=0.0, remat=False
  )
  rounded = from_tensors(
    safetensors_file.round_to(to_tensors(params), dtype), cfg, 'weights'
  )
  shape = PROBE_SHAPE[0], min(PROBE_SHAPE[1], cfg.block_size)
  tokens = np.random.default_rng(0).integers(0, cfg.vocab_size, shape)
  forward = jax.jit(GPT(cfg).apply)
  with jax.default_matmul_precision('highest'):
    exact, close = (
      np.asarray(forward({'params': p}, tokens.astype(np.int32)))
      for p in (params, rounded)
    )
  same = exact.argmax(-1) == close.argmax(-1)
  return {
    'max_error': float(np.abs(exact - close).max()),
    'max_logit': float(np.abs(exact).max()),
    'same_argmax': float(same.mean()),
    'positions': int(same.size),
  }


def microgpt_order(tokenizer) -> list[int]:
  """Our ids in the order of microgpt's: BOS, chat tokens, the rest, no EOS."""
  special = tokenizer.special_tokens
  first = [tokenizer.bos_id]
  if is_chat_tokenizer(tokenizer):
    first += [special[name] for name in CHAT_TOKENS]
  no_meaning = set(tokenizer.unsampleable_ids) - set(special.values())
  no_meaning |= {
    i for name, i in special.items() if our_name(name) in ('<|unk|>', '<|pad|>')
  }
  left_out = no_meaning | {tokenizer.eos_id, *first}
  return first + [i for i in range(tokenizer.vocab_size) if i not in left_out]


def microgpt_tokenizer(tokenizer, order) -> bytes:
  """The tokenizer.json of a microgpt directory, ids in `order`.

  Raises:
    UserError: the tokenizer has none.
  """
  if tokenizer.kind == 'hf' and order == list(range(tokenizer.vocab_size)):
    names = tokenizer_json.control_names(tokenizer)
    if all(
      their_name(ours) == name for ours, name in names.items() if ours != EOS
    ):
      return tokenizer.data
  found = tokenizer_json.vocabulary(tokenizer)
  names = {id: their_name(found.tokens[id]) for id in found.control}
  data = tokenizer_json.to_json(found, order, names)
  tokenizer_json.check(
    tokenizer, data, {old: new for new, old in enumerate(order)}
  )
  return data


def write_microgpt(
  directory, cfg, params, tokenizer, dtype: str, end_id: int
) -> list[str]:
  """Writes a microgpt model directory.

  Args:
    end_id: what a document of the model ends with: EOS, BOS in chat data.

  Returns:
    Lines worth telling: what is different there.

  Raises:
    UserError: a model or a tokenizer that microgpt has not.
  """
  if reasons := unrepresentable(cfg, 'microgpt'):
    raise UserError(
      f'this model cannot be written for microgpt: {"; ".join(reasons)}'
    )
  order = microgpt_order(tokenizer)
  data = microgpt_tokenizer(tokenizer, order)
  head = [end_id, *order[1:]]
  params = {
    **params,
    'wte': np.asarray(params['wte'])[order],
    'lm_head': np.asarray(params['lm_head'])[head],
  }
  meta = {'vocab_size': len(order)}
  meta |= {name: getattr(cfg, name) for name in META_SHAPE}
  if is_chat_tokenizer(tokenizer):
    meta['special_tokens'] = [name[2:-2] for name in CHAT_TOKENS]
  directory = make_directory(
    directory, (WEIGHTS, META, TOKENIZER), META, dict.fromkeys(META_SHAPE)
  )
  with explained_writes(directory):
    write_atomic(directory / TOKENIZER, data)
    write_atomic(directory / META, (json.dumps(meta, indent=2) + '\n').encode())
  safetensors_file.write(directory / WEIGHTS, to_tensors(params), dtype)
  if tokenizer.eos_id == tokenizer.bos_id:
    return []
  return [
    f'note: microgpt has one token for the beginning and the end: '
    f'{tokenizer.vocab_size} tokens became {len(order)}, in its order; the '
    'probabilities are the same'
  ]


def read_microgpt(directory) -> Foreign:
  """Reads a microgpt model directory.

  Raises:
    UserError: files that are missing, damaged or contradict each other.
  """
  directory = pathlib.Path(directory)
  meta = read_json(directory / META)
  for name in ('vocab_size', *META_SHAPE):
    if not isinstance(meta.get(name), int) or meta[name] < 1:
      raise UserError(
        f'{directory / META}: {name} is {meta.get(name)!r}; a whole number '
        'above 0 is needed'
      )
  shape = {'arch': 'microgpt'} | {name: meta[name] for name in META_SHAPE}
  cfg = GPTConfig(vocab_size=meta['vocab_size'], **shape)
  tensors, _ = safetensors_file.read(directory / WEIGHTS)
  params = from_tensors(tensors, cfg, directory / WEIGHTS)
  tokenizer = read_hf_json(directory / TOKENIZER)
  check_vocab_size(tokenizer, cfg, directory)
  for name in meta.get('special_tokens') or ():
    if f'<|{name}|>' not in tokenizer.special_tokens:
      raise UserError(
        f'{directory / META} names the special token {name!r}, which '
        f'{TOKENIZER} does not have'
      )
  return Foreign(shape, params, tokenizer)


def write_safetensors(path, cfg, params, dtype: str, extra: dict) -> int:
  """One file of tensors; its header holds the architecture and `extra`."""
  metadata = {'format': 'pt', 'rgpt': json.dumps(extra)}
  metadata |= {
    name: str(value) for name, value in dataclasses.asdict(cfg).items()
  }
  return safetensors_file.write(path, to_tensors(params), dtype, metadata)


def make_directory(directory, names, mark: str, keys: dict) -> pathlib.Path:
  """A directory to write `names` into: new, empty, or an earlier export.

  Args:
    mark: the JSON file by which an export is known.
    keys: what that holds; None stands for any value.

  Raises:
    UserError: it holds anything else, or cannot be made.
  """
  directory = pathlib.Path(directory)
  with explained_writes(directory):
    directory.mkdir(parents=True, exist_ok=True)
    found = {p.name for p in directory.iterdir()}
  strange = sorted(found - set(names))
  if found and not strange:
    try:
      given = read_json(directory / mark)
    except UserError:
      given = {}
    if any(
      given.get(k) is None or v not in (None, given[k]) for k, v in keys.items()
    ):
      strange = sorted(found)
  if strange:
    raise UserError(
      f'{directory} holds {strange[0]}, which is not of an export: nothing in '
      'it will be overwritten. Choose a new --output'
    )
  return directory


def read_json(path) -> dict:
  """A file with a JSON object; UserError if it is anything else."""
  try:
    value = json.loads(pathlib.Path(path).read_text(encoding='utf-8'))
  except OSError as e:
    raise UserError(f'cannot read {path}: {e.strerror or e}') from e
  except ValueError as e:
    raise UserError(f'{path} is not JSON: {e}') from e
  if not isinstance(value, dict):
    raise UserError(f'{path} does not hold a JSON object')
  return value


def check_vocab_size(tokenizer, cfg: GPTConfig, directory) -> None:
  if tokenizer.vocab_size != cfg.vocab_size:
    raise UserError(
      f'{directory}: the tokenizer has {tokenizer.vocab_size} tokens, the '
      f'model {cfg.vocab_size}'
    )
