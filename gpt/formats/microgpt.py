"""microgpt's model directories: weights.safetensors, meta.json, tokenizer.json.

microgpt has one token, `<bos>`, at both ends of a document, and its control
tokens have the ids 0 to 3. A model with a separate EOS is converted: its rows
are reordered, and BOS and EOS become one row. The embedding of that row is
BOS's (EOS is never fed), its row of the head is that of the token documents end
with (EOS; BOS in chat data). Tokens without meaning (pad, unk) are left out.
Next-token probabilities are then those of our sampler, which bans those tokens.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpt.errors import UserError, explained_writes, naming, quoted
from gpt.fields import read_fields
from gpt.files import write_atomic
from gpt.formats import tokenizer_json
from gpt.formats.directories import (
  LAYOUTS,
  ForeignModel,
  Path,
  check_vocab_size,
  make_directory,
)
from gpt.formats.tensors import (
  from_tensors,
  read_tensors,
  to_tensors,
  write_tensors,
)
from gpt.model import GPTConfig
from gpt.model.config import LARGEST, unrepresentable
from gpt.model.params import Params
from gpt.tokenizers import Tokenizer
from gpt.tokenizers.base import EOS
from gpt.tokenizers.chat_format import CHAT_TOKENS, has_chat_tokens
from gpt.tokenizers.huggingface import (
  HfTokenizer,
  microgpt_token,
  read_hf_json,
  rgpt_token,
)

WEIGHTS, META, TOKENIZER = LAYOUTS['microgpt'].files
META_SHAPE = tuple(LAYOUTS['microgpt'].keys)


def kept_ids(tokenizer: Tokenizer) -> list[int]:
  """Our ids in microgpt's order: BOS, chat tokens, the others; no EOS."""
  special = tokenizer.special_tokens
  first = [tokenizer.bos_id]
  if has_chat_tokens(tokenizer):
    first += [special[name] for name in CHAT_TOKENS]
  no_meaning = set(tokenizer.unsampleable_ids) - set(special.values())
  no_meaning |= {
    i
    for name, i in special.items()
    if rgpt_token(name) in ('<|unk|>', '<|pad|>')
  }
  left_out = no_meaning | {tokenizer.eos_id, *first}
  return first + [i for i in range(tokenizer.vocab_size) if i not in left_out]


def tokenizer_file(tokenizer: Tokenizer, order: Sequence[int]) -> bytes:
  """The tokenizer.json of a microgpt directory.

  Args:
    order: our ids in the order of their new ids.

  Raises:
    UserError: the tokenizer cannot be expressed as one.
  """
  unchanged = order == list(range(tokenizer.vocab_size))
  if isinstance(tokenizer, HfTokenizer) and unchanged:
    names = tokenizer_json.control_names(tokenizer)
    if all(
      microgpt_token(ours) == name
      for ours, name in names.items()
      if ours != EOS
    ):
      return tokenizer.data
  found = tokenizer_json.vocabulary(tokenizer)
  names = {id: microgpt_token(found.tokens[id]) for id in found.control}
  data = tokenizer_json.to_json(found, order, names)
  tokenizer_json.check(
    tokenizer, data, {old: new for new, old in enumerate(order)}
  )
  return data


def write_microgpt(
  directory: Path,
  cfg: GPTConfig,
  params: Params,
  tokenizer: Tokenizer,
  dtype: str,
  end_id: int,
) -> list[str]:
  """Writes a microgpt model directory.

  Args:
    dtype: a key of tensors.DTYPES.
    end_id: the token that ends a document: EOS, or BOS in chat data.

  Returns:
    Notes for the user about what differs there.

  Raises:
    UserError: a model or tokenizer that the format cannot represent; a place
      that cannot be written to.
  """
  if reasons := unrepresentable(cfg, 'microgpt'):
    raise UserError(
      f'this model cannot be written for microgpt: {"; ".join(reasons)}'
    )
  order = kept_ids(tokenizer)
  data = tokenizer_file(tokenizer, order)
  params = {
    **params,
    'wte': np.asarray(params['wte'])[order],
    'lm_head': np.asarray(params['lm_head'])[[end_id, *order[1:]]],
  }
  meta: dict[str, Any] = {'vocab_size': len(order)}
  meta |= {name: getattr(cfg, name) for name in META_SHAPE}
  if has_chat_tokens(tokenizer):
    meta['special_tokens'] = [name[2:-2] for name in CHAT_TOKENS]
  directory = make_directory(directory)
  with explained_writes(directory):
    write_atomic(directory / TOKENIZER, data)
    write_atomic(directory / META, (json.dumps(meta, indent=2) + '\n').encode())
  write_tensors(directory / WEIGHTS, to_tensors(params), dtype)
  if tokenizer.eos_id == tokenizer.bos_id:
    return []
  return [
    'note: microgpt has one token for the beginning and the end of a document: '
    f'{tokenizer.vocab_size} tokens became {len(order)}, in its order; the '
    'probabilities are the same'
  ]


def read_microgpt(directory: Path) -> ForeignModel:
  """Reads a microgpt model directory.

  Raises:
    UserError: missing, damaged or contradictory files.
  """
  directory = pathlib.Path(directory)
  meta = read_fields(directory / META)
  options: dict[str, Any] = {
    name: meta.integer(name, 1, LARGEST[name]) for name in META_SHAPE
  }
  vocab_size = meta.integer('vocab_size', 1, LARGEST['vocab_size'])
  with naming(directory / META):
    cfg = GPTConfig(vocab_size=vocab_size, arch='microgpt', **options)
  params = from_tensors(
    read_tensors(directory / WEIGHTS), cfg, directory / WEIGHTS
  )
  tokenizer = read_hf_json(directory / TOKENIZER)
  check_vocab_size(tokenizer, cfg, directory)
  for name in meta.items('special_tokens', (), of=str):
    if f'<|{name}|>' not in tokenizer.special_tokens:
      raise UserError(
        f'{directory / META} names the special token {quoted(name)}, which '
        f'{TOKENIZER} does not have'
      )
  return ForeignModel({**options, 'arch': 'microgpt'}, params, tokenizer)
