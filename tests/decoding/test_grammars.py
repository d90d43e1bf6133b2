"""Tokens that a grammar allows: every walk through them is a valid text."""

import functools
import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt.decoding import grammars
from gpt.decoding.grammars import Grammar, Source
from gpt.errors import UserError
from gpt.tokenizers import StreamDecoder, build_tokenizer
from tests.support.grammar_tools import KINDS, SCHEMAS, tokenizer_of, walk

jsonschema = pytest.importorskip('jsonschema')
pytest.importorskip('llguidance')

PERSON = {
  'type': 'object',
  'properties': {
    'name': {'type': 'string', 'maxLength': 8},
    'age': {'type': 'integer', 'minimum': 0, 'maximum': 150},
    'tags': {'type': 'array', 'items': {'enum': ['a', 'b']}, 'maxItems': 3},
  },
  'required': ['name', 'age'],
  'additionalProperties': False,
}


def schema(value):
  return Source('json_schema', json.dumps(value), 'schema')


def text_of(tokenizer, ids, after=None):
  decoder = StreamDecoder(tokenizer, after)
  return ''.join(map(decoder.feed, ids)) + decoder.flush()


@pytest.mark.parametrize('kind', KINDS)
def test_every_token_stands_for_its_own_bytes(kind):
  """Control tokens have none, and no text leads to them."""
  tokenizer = tokenizer_of(kind)
  found = grammars.vocabulary(tokenizer)
  control = {
    i for i in range(tokenizer.vocab_size) if found.is_special_token(i)
  }
  for id in range(tokenizer.vocab_size):
    data = tokenizer.token_bytes(id)
    # No UTF-8 text has the byte 0xff, so a token of it is as good as none.
    assert (id in control) == (not data or data[0] == 0xFF)
    assert id in control or found.decode_bytes([id]) == data
  text = '{"name": "R2-D2", "tags": []}'
  assert found.decode_bytes(found.tokenize_str(text)) == text.encode()


@pytest.mark.parametrize('kind', KINDS)
def test_every_walk_is_valid_json_of_its_schema(kind):
  tokenizer, rng = tokenizer_of(kind), np.random.default_rng(0)
  grammar = Grammar(schema(PERSON), tokenizer)
  for after in (None, tokenizer.bos_id, int(tokenizer.encode('a')[-1])):
    for _ in range(5):
      ids, whole = walk(grammar, rng, after=after)
      assert whole
      jsonschema.validate(json.loads(text_of(tokenizer, ids, after)), PERSON)


@settings(deadline=None, max_examples=40)
@given(SCHEMAS, st.sampled_from(KINDS), st.integers(0, 2**32 - 1))
def test_walks_of_random_schemas_are_valid_or_unfinished(value, kind, seed):
  tokenizer = tokenizer_of(kind)
  ids, whole = walk(
    Grammar(schema(value), tokenizer), np.random.default_rng(seed)
  )
  if whole:
    text = text_of(tokenizer, ids)
    # A number of 5,000 digits is JSON, but not for Python.
    jsonschema.validate(json.loads(text, parse_int=float), value)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize(
  'source, pattern',
  [
    (Source('regex', r'[a-c]{2,3}-\d+', 'regex'), r'[a-c]{2,3}-\d+'),
    (Source('choice', '["yes", "no: \\"x\\""]', 'choice'), r'yes|no: "x"'),
    (
      Source('grammar', 'start: "<" W ">"\nW: /[a-z]{1,4}/', 'g'),
      '<[a-z]{1,4}>',
    ),
    (Source('grammar', 'root ::= "<" w ">"\nw ::= [a-z]', 'g'), '<[a-z]>'),
  ],
  ids=['regex', 'choice', 'lark', 'gbnf'],
)
def test_walks_of_other_sources_match_them(kind, source, pattern):
  tokenizer, rng = tokenizer_of(kind), np.random.default_rng(1)
  grammar = Grammar(source, tokenizer)
  for _ in range(5):
    ids, whole = walk(grammar, rng)
    text = text_of(tokenizer, ids)
    assert whole and re.fullmatch(pattern, text), text


@pytest.mark.parametrize(
  'source, message',
  [
    (schema({'type': 'foo'}), 'foo'),
    (schema({'type': 'array', 'uniqueItems': True}), 'uniqueItems'),
    (schema({'enum': []}), 'Unsatisfiable'),
    (schema({'items': {'multipleOf': 999983}}), 'multipleOf'),
    (schema(functools.reduce(lambda s, _: [s], range(300), [])), 'schema'),
    (Source('regex', '(a', 'regex'), 'regex cannot be used: .*unclosed'),
    (
      Source('grammar', 'start: foo', 'grammar'),
      'grammar cannot be used: .*foo',
    ),
    (Source('grammar', 'root ::= (', 'grammar'), 'grammar cannot be read'),
    (Source('regex', 'a' * 70_000, 'regex'), '70000 characters; at most 65536'),
  ],
)
def test_what_cannot_be_used_is_named(source, message):
  with pytest.raises(UserError, match=f'(?s){message}'):
    Grammar(source, tokenizer_of('char'))


def test_the_deepest_grammars_that_fit_do_not_end_the_process():
  n = 9_000
  rules = ''.join(f'a{i:x}:a{i + 1:x}\n' for i in range(4_500))
  chain = f'start:a0\n{rules}a{4_500:x}:"x"\n'
  nested = '(' * n + '"x"' + ')' * n
  char = tokenizer_of('char')
  for text in (chain, f'start: {nested}', f'root ::= {nested}'):
    assert len(text) <= grammars.MAX_SOURCE
    try:
      grammar = Grammar(Source('grammar', text, 'grammar'), char)
      ids, _ = walk(grammar, np.random.default_rng(0))
      assert text_of(char, ids) == 'x'
    except UserError as e:
      assert 'nested' in str(e) or 'recursion' in str(e)


def test_a_vocabulary_without_braces_has_no_json():
  letters = build_tokenizer('char', ['abc: "'], 0)
  with pytest.raises(UserError, match='cannot be satisfied'):
    Grammar(schema(PERSON), letters)


def test_texts_whose_letters_a_vocabulary_lacks_are_refused_at_once():
  few = build_tokenizer('char', ['ab{}":, \n1'], 0)

  def with_key(name, **fields):
    value = {'type': 'object', 'properties': {name: {'const': 1}}, **fields}
    return schema({**value, 'additionalProperties': False})

  for source in (
    with_key('z', required=['z']),
    schema({'enum': ['a\u00e9', 'z']}),
    Source('regex', 'a{3}z+', 'regex'),
    Source('choice', '["az", "bz"]', 'choice'),
  ):
    with pytest.raises(UserError, match='cannot be satisfied'):
      Grammar(source, few)
  rng = np.random.default_rng(0)
  for source in (with_key('z'), with_key('a'), Source('regex', 'z|ab', 'r')):
    ids, whole = walk(Grammar(source, few), rng)
    assert whole or few.decode(ids).endswith('"')
