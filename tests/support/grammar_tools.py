"""Tokenizers of every kind, JSON Schemas at random, and texts they allow."""

import functools
import string

import numpy as np
from hypothesis import strategies as st

from gpt.data.sample_text import sample_text
from gpt.tokenizers import (
  BOS,
  EOS,
  HfTokenizer,
  RandyTokenizer,
  build_tokenizer,
)
from tests.support import foreign_tokenizers
from tests.support.tokenizer_tools import train_spm

JSON_LETTERS = string.ascii_letters + string.digits + '{}[]":,. -+\\/\n_<>'
# As Qwen's.
TEMPLATE = (
  '{% if tools %}<|im_start|>system\n{% for tool in tools %}'
  '{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}'
  '{% for m in messages %}'
  "{% if m.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ m.content }}"
  '\n</tool_response><|im_end|>\n'
  '{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}'
  '{% for call in m.tool_calls %}<tool_call>\n'
  '{"name": "{{ call.function.name }}", '
  '"arguments": {{ call.function.arguments | tojson }}}\n</tool_call>'
  '{% endfor %}<|im_end|>\n{% endif %}{% endfor %}'
  '{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}'
)
CHAT_NAMES = ('<|user|>', '<|assistant|>', '<|end_turn|>')
KINDS = (
  'char',
  'sentencepiece',
  'randygpt',
  'hf',
  'smollm2',
  'qwen3',
  'llama2',
)


@functools.cache
def tokenizer_of(kind):
  if kind == 'char':
    return build_tokenizer('char', [JSON_LETTERS], 0, CHAT_NAMES)
  if kind == 'sentencepiece':
    return train_spm()
  if kind == 'hf':
    return build_tokenizer('hf', [sample_text()[:60_000]], 500, CHAT_NAMES)
  if kind == 'randygpt':
    merges = [('"', ':'), ('":', ' '), ('{', '"'), ('t', 'r'), (',', ' ')]
    joined = [a + b for a, b in merges]
    vocab = [BOS, EOS, *sorted(set(JSON_LETTERS)), *joined]
    return RandyTokenizer(vocab, merges)
  ends = {
    'smollm2': ('<|im_start|>', '<|im_end|>'),
    'qwen3': (None, '<|im_end|>'),
    'llama2': ('<s>', '</s>'),
  }
  bos, eos = ends[kind]
  data = foreign_tokenizers.make(kind).to_str().encode()
  return HfTokenizer(data, bos=bos, eos=eos)


def templated():
  """A tokenizer of characters whose chat template takes tools."""
  tokenizer = build_tokenizer(
    'char', [JSON_LETTERS + '|'], 0, ('<|im_start|>', '<|im_end|>')
  )
  tokenizer.chat_template = TEMPLATE
  return tokenizer


def walk(grammar, rng, limit=400, after=None):
  """(ids, whether the text is whole): tokens drawn at random."""
  constraint, ids = grammar.start(after), []
  while len(ids) < limit:
    choices = np.flatnonzero(constraint.allowed_V)
    if not len(choices) or constraint.complete and rng.random() < 0.3:
      break
    ids.append(int(rng.choice(choices)))
    constraint.accept(ids[-1])
  return ids, constraint.complete


def leaves():
  return st.sampled_from(
    [
      {'type': 'string'},
      {'type': 'string', 'maxLength': 5},
      {'type': 'string', 'pattern': '^[a-c]{2,4}$'},
      {'type': 'integer'},
      {'type': 'integer', 'minimum': -3, 'maximum': 12},
      {'type': 'number', 'exclusiveMinimum': 0},
      {'type': 'boolean'},
      {'type': 'null'},
      {'enum': ['red', 7, None, {'a': [1]}]},
      {'const': 'fixed'},
      {'type': ['integer', 'null']},
      {},
    ]
  )


def objects(children):
  names = st.sampled_from(['a', 'b_1', 'name', 'x y', '"quoted"'])

  def build(properties, optional, closed):
    return {
      'type': 'object',
      'properties': properties,
      'required': [n for n in properties if n not in optional],
      **({'additionalProperties': False} if closed else {}),
    }

  return st.builds(
    build,
    st.dictionaries(names, children, max_size=3),
    st.sets(names),
    st.booleans(),
  )


SCHEMAS = st.recursive(
  leaves(),
  lambda inner: st.one_of(
    objects(inner),
    st.builds(
      lambda items, least: {
        'type': 'array',
        'items': items,
        'minItems': least,
        'maxItems': least + 2,
      },
      inner,
      st.integers(0, 2),
    ),
    st.builds(lambda a, b: {'anyOf': [a, b]}, inner, inner),
  ),
  max_leaves=6,
)
