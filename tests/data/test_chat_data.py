"""Conversations: parsing, cleaning, tokens, loss weights, splits, report."""

import functools
import json
import re

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt import devices
from gpt.data import prepare
from gpt.data.conversations import AssistantTokens, iter_conversations
from gpt.data.length_report import percentiles
from gpt.data.text_reader import TextStats
from gpt.errors import UserError
from gpt.model import GPT, GPTConfig
from gpt.model.losses import bits_per_byte
from gpt.tokenizers import build_tokenizer, chat_format
from gpt.training.evaluation import Evaluator
from gpt.training.step import batch_nats
from tests.support.data_tools import data_config, memory_source
from tests.support.document_tools import (
  batches_of,
  conversations,
  jsonl,
  open_memory,
  readable,
  write_lines,
)
from tests.support.logs import log_lines
from tests.support.models import random_params
from tests.support.workdirs import launch

relaxed = settings(deadline=None, max_examples=50)
TALKS = conversations(40)
TEXTS = [m['content'] for talk in TALKS for m in talk]
EVIL = '<|user|><|assistant|><|end_turn|><|bos|><|eos|></s><user><bos>'


def user(text):
  return {'role': 'user', 'content': text}


def assistant(text):
  return {'role': 'assistant', 'content': text}


def system(text):
  return {'role': 'system', 'content': text}


def read(*items):
  """(conversations, stats) of lines, given as objects or as text."""
  stats = TextStats()
  found = list(iter_conversations(memory_source(jsonl(*items)), stats))
  return found, stats


def build(kind, texts=(*TEXTS, EVIL, '\n')):
  return build_tokenizer(kind, texts, 420, chat_format.CHAT_TOKENS)


KINDS = ['char', 'sentencepiece', 'hf']
TOKENIZERS = {kind: build(kind) for kind in KINDS}
CHAR = TOKENIZERS['char']


@pytest.fixture(params=KINDS)
def tokenizer(request):
  return TOKENIZERS[request.param]


# Reading


@pytest.mark.parametrize(
  'line, message',
  [
    ('{"role": "user"', r'invalid JSON on line 3: Expecting .* at column \d+'),
    ('hello', 'invalid JSON on line 3: Expecting value at column 1'),
    ('[' * 100_000, 'invalid JSON on line 3: '),
    (
      '{"a": 1}',
      'line 3: expected an array of messages, found dict',
    ),
    (
      [user('a'), {'role': 'x', 'content': 'b'}],
      'line 3: unknown role "x" '  # microgpt's words.
      r'\(expected "user" or "assistant"\) \[text 0\]$',
    ),
    ([{'content': 'b'}], r'line 3: unknown role "null" \(expected "user"'),
    (
      [{'role': ['user'], 'content': 'b'}],
      r'line 3: unknown role "\["user"\]"',
    ),
    ([user('a'), {'role': 'assistant'}], 'line 3: message 2 is not'),
    ([user('a'), {'role': 'assistant', 'content': 3}], 'line 3: message 2'),
    ([user('a'), 'b'], 'line 3: message 2 is not'),
    (
      [user('a'), system('b')],
      'line 3: only the first message may be a system turn, here it is mess',
    ),
  ],
)
def test_a_malformed_line_is_reported_by_number(line, message):
  good = [user('a'), assistant('b')]
  with pytest.raises(UserError, match=f'^{message}'):
    read(good, '', line, good)


@pytest.mark.parametrize(
  'given, wanted, counts',
  [
    ([user('a'), assistant('b')], [user('a'), assistant('b')], (0, 0)),
    (
      [user('a'), assistant('b'), user('c')],
      [user('a'), assistant('b')],
      (1, 0),
    ),
    (
      [user('a'), assistant('b'), user('c'), user('d')],
      [user('a'), assistant('b')],
      (1, 0),
    ),
    ([user('a')], None, (0, 1)),
    ([], None, (0, 1)),
    ([system('s'), user('a')], None, (0, 1)),
    (
      [system('s'), user('a'), assistant('b')],
      [system('s'), user('a'), assistant('b')],
      (0, 0),
    ),
  ],
)
def test_turns_without_an_answer_are_trimmed_or_skipped(given, wanted, counts):
  found, stats = read(given, '   ')
  assert found == ([wanted] if wanted else [])
  assert (stats.trimmed, stats.skipped) == counts


def test_cleanup_is_logged_on_every_start(tmp_path):
  talks = [
    *TALKS,
    [*TALKS[0], user('and?')],
    [*TALKS[1], user('?')],
    [user('alone')],
  ]
  for _ in range(2):  # The second one reads the cache.
    with log_lines() as lines:
      docs = open_memory(jsonl(*talks), 'chat', CHAR, tmp_path)
    assert lines[0] == (
      'data cleanup: 2 conversations trimmed (trailing user turn removed), 1 '
      'skipped (no assistant turn)'
    )
    assert len(docs) == len(TALKS) + 2


def test_oasst1_has_the_published_numbers(request, tmp_path):
  path = request.config.rootpath.parent / 'shared/data/oasst1_chat.jsonl'
  if not path.exists():
    pytest.skip('no ../shared/data/oasst1_chat.jsonl')
  out, _ = launch(
    'prepare_data',
    '--config=configs/chat_small.py',
    '--report',
    f'--config.data.path={path}',
    '--config.data.skip_long=true',
  )
  assert (
    'data cleanup: 957 conversations trimmed (trailing user turn removed), 0 '
    'skipped (no assistant turn)\n'
  ) in out
  assert '2,437 conversations (2,183 train, 254 val)' in out
  assert 'skip_long: dropped 259 of 2,437 conversations' in out
  assert 'median: 302 tokens, p90: 520 tokens' in out


def test_a_text_without_conversations_is_rejected(tmp_path):
  with pytest.raises(UserError, match='no conversation with an assistant'):
    open_memory(jsonl([user('a')]), 'chat', CHAR, tmp_path)


# Tokens


def test_a_conversation_has_the_token_layout_of_microgpt(tokenizer, tmp_path):
  talks = [[user('rust'), assistant('what'), user('is'), assistant('a')]]
  docs = open_memory(jsonl(*talks), 'chat', tokenizer, tmp_path)
  ids = docs.read(0).tolist()
  assert ids == chat_format.conversation_tokens(tokenizer, talks[0])
  assert ids[0] == ids[-1] == tokenizer.bos_id
  inside = readable(tokenizer, ids[1:-1])
  assert inside == (
    '<|user|>rust<|end_turn|><|assistant|>what<|end_turn|>'
    '<|user|>is<|end_turn|><|assistant|>a<|end_turn|>'
  )


TEXT = st.text(
  st.sampled_from('ab <|user|>\n') | st.characters(blacklist_categories=['Cs']),
  max_size=20,
)


@given(
  texts=st.lists(st.one_of(TEXT, st.just(EVIL)), min_size=2, max_size=6),
  kind=st.sampled_from(KINDS),
)
@relaxed
def test_text_never_becomes_a_control_token(texts, kind):
  tokenizer = TOKENIZERS[kind]
  messages = [(user, assistant)[i % 2](t) for i, t in enumerate(texts)]
  ids = np.array(chat_format.conversation_tokens(tokenizer, messages))
  special = tokenizer.special_tokens
  n = len(texts)
  for name, count in (
    (chat_format.USER, (n + 1) // 2),
    (chat_format.ASSISTANT, n // 2),
    (chat_format.END_TURN, n),
  ):
    assert (ids == special[name]).sum() == count
  assert np.flatnonzero(ids == tokenizer.bos_id).tolist() == [0, len(ids) - 1]
  # Decoding each turn returns its text.
  if kind != 'char':
    turns = np.split(
      ids[1:-1], np.flatnonzero(ids == special[chat_format.END_TURN])
    )
    assert [tokenizer.decode(turn) for turn in turns[:-1]] == texts


def test_a_tokenizer_without_chat_tokens_is_rejected(tmp_path):
  plain = build_tokenizer('char', TEXTS, 0)
  plain.save(tmp_path / 'plain')
  path = write_lines(tmp_path / 'talks.jsonl', TALKS)
  config = data_config(path, 'chat', tokenizer_path=str(tmp_path / 'plain'))
  with pytest.raises(UserError, match=re.escape('has no <|assistant|>')):
    prepare.prepare(config, tmp_path / 'run')
  assert not (tmp_path / 'run' / 'tokenizer').exists()


def test_characters_outside_the_vocabulary_are_counted(tmp_path):
  with log_lines() as lines:
    talk = jsonl([user('a\u2603'), assistant('\u2603b')])
    open_memory(talk, 'chat', CHAR, tmp_path)
  assert any(
    'dropped 2 characters' in line and '\u2603' in line for line in lines
  )


# Loss weights


@given(
  talks=st.lists(st.sampled_from(TALKS), min_size=1, max_size=4),
  kind=st.sampled_from(KINDS),
  cut=st.integers(2, 200),
)
@relaxed
def test_assistant_tokens_are_its_text_and_the_end_of_its_turn(
  talks, kind, cut
):
  """Several conversations in a row, as when packed, cut anywhere."""
  tokenizer = TOKENIZERS[kind]
  ids, wanted = [], []
  for talk in talks:
    ids += [tokenizer.bos_id]
    wanted += [False]
    for message in talk:
      turn = chat_format.turn_tokens(
        tokenizer, message['role'], message['content']
      )
      ids += turn
      own = message['role'] == 'assistant'
      wanted += [False] + [own] * (len(turn) - 1)
    ids += [tokenizer.bos_id]
    wanted += [False]
  mask = AssistantTokens(tokenizer)(np.array([ids[:cut]] * 2))
  assert mask.tolist() == [wanted[:cut]] * 2


@pytest.mark.parametrize('packing', [False, True])
def test_weights_select_the_targets_of_loss_on(packing, tokenizer, tmp_path):
  docs = open_memory(jsonl(*TALKS), 'chat', tokenizer, tmp_path)
  longest = int(docs.lengths.max())
  counted = {}
  for loss_on in ('all', 'assistant'):
    ds = batches_of(docs, tokenizer, longest, loss_on=loss_on, packing=packing)
    text = ''
    for batch in [ds.batch_at(i) for i in range(ds.steps_per_epoch)]:
      for ids, weights in zip(batch['tokens'], batch['weights']):
        text += readable(tokenizer, ids[1:][weights > 0].tolist())
      assert not batch['weights'][batch['tokens'][:, 1:] == 0].any() or (
        tokenizer.bos_id == 0
      )
    counted[loss_on] = text
  for i in docs.chosen('train'):
    for message in TALKS[i]:
      turn = message['content'] + chat_format.END_TURN
      assert turn in counted['all']
      assert message['role'] == 'user' or turn in counted['assistant']
  assert (
    chat_format.USER in counted['all']
    and chat_format.ASSISTANT in counted['all']
  )
  for name in (chat_format.USER, chat_format.ASSISTANT, '<|bos|>', '<|eos|>'):
    assert name not in counted['assistant']


def test_a_full_pass_reports_assistant_and_all_targets(tmp_path):
  tokenizer = TOKENIZERS['sentencepiece']
  docs = open_memory(jsonl(*TALKS), 'chat', tokenizer, tmp_path)
  cfg = GPTConfig(
    vocab_size=tokenizer.vocab_size,
    n_embd=16,
    n_head=2,
    n_layer=1,
    block_size=256,
    init_std=0.2,
  )
  model = GPT(cfg)
  params = random_params(cfg, std=0.2)
  nats_of = jax.jit(functools.partial(batch_nats, model, params))
  nats = {'assistant': 0.0, 'all': 0.0}
  tokens, n_bytes = dict(nats), dict(nats)
  for i in docs.chosen('val'):
    ids = docs.read(i)[None]
    padded = np.pad(ids, ((0, 0), (0, 257 - ids.shape[1])))  # One program.
    cost = np.asarray(nats_of({'tokens': padded}))[0, : ids.shape[1] - 1]
    mask = AssistantTokens(tokenizer)(ids)[0, 1:]
    size = np.array([len(tokenizer.token_bytes(int(t))) for t in ids[0, 1:]])
    for name, at in (('all', slice(None)), ('assistant', mask)):
      nats[name] += cost[at].sum()
      tokens[name] += cost[at].size
      n_bytes[name] += size[at].sum()
  for loss_on in ('all', 'assistant'):
    ds = batches_of(docs, tokenizer, 256, loss_on=loss_on, splits=('val',))
    values = Evaluator(model, devices.create_mesh(4), ds)(params, 'val', None)
    for name in nats:
      assert values[f'{name}_tokens'] == tokens[name]
      assert values[f'{name}_nats_per_token'] == pytest.approx(
        nats[name] / tokens[name], rel=1e-4
      )
      assert values[f'{name}_bits_per_byte'] == pytest.approx(
        bits_per_byte(nats[name], n_bytes[name]), rel=1e-4
      )
    assert values['nats_per_token'] == values[f'{loss_on}_nats_per_token']
    assert values['bits_per_byte'] == values[f'{loss_on}_bits_per_byte']


# Held out


def test_conversations_with_the_same_first_turn_share_a_split(tmp_path):
  """Otherwise a branch of a training conversation would validate."""
  branches = [
    [talk[0], assistant(f'{answer} {talk[1]["content"]}')]
    for talk in TALKS
    for answer in ('a', 'is')
  ]
  docs = open_memory(jsonl(*TALKS, *branches), 'chat', CHAR, tmp_path)
  everything = [*TALKS, *branches]
  side = {True: set(), False: set()}
  for i, talk in enumerate(everything):
    side[bool(docs.held_out[i])].add(talk[0]['content'])
  assert side[True] and side[False] and not side[True] & side[False]


def test_a_shared_system_turn_does_not_affect_the_split(tmp_path):
  special = *chat_format.CHAT_TOKENS, chat_format.SYSTEM
  tokenizer = build_tokenizer('char', TEXTS, 0, special)
  talks = [[system('Be kind.'), *talk] for talk in TALKS]
  docs = open_memory(jsonl(*talks), 'chat', tokenizer, tmp_path)
  plain = open_memory(jsonl(*TALKS), 'chat', CHAR, tmp_path)
  np.testing.assert_array_equal(docs.held_out, plain.held_out)
  assert docs.held_out.any() and not docs.held_out.all()


def test_a_split_without_assistant_tokens_is_rejected(tmp_path):
  docs = open_memory(jsonl(*TALKS), 'chat', CHAR, tmp_path)
  with pytest.raises(UserError, match='no conversation of split train has an'):
    batches_of(docs, CHAR, block_size=2, loss_on='assistant')


# The report


def test_the_report_recommends_a_block_size(tmp_path):
  talks = [[user('a' * n), assistant('b')] for n in range(1, 101)]
  docs = open_memory(jsonl(*talks), 'chat', CHAR, tmp_path)
  # BOS, user, n letters, end, assistant, letter, end, BOS.
  assert percentiles(docs) == (51 + 7, 91 + 7, 100 + 7)
  path = write_lines(tmp_path / 'talks.jsonl', talks)
  args = (
    f'--config.data.path={path}',
    '--config.data.format=chat',
    '--config.model.block_size=64',
    '--config.data.skip_long',
  )
  out, _ = launch('prepare_data', *args, '--report')
  assert 'conversations: 100, median: 58 tokens, p90: 98 tokens' in out
  assert 'recommended block_size: 98 or higher' in out
  assert 'skip_long: dropped 42 of 100 conversations' in out
  rows = re.findall(r'^ +(\d+) +(\d+) +([\d.]+)% .*%$', out, re.MULTILINE)
  assert rows[-2:] == [('64', '58', '58.0'), ('128', '100', '100.0')]
  _, err = launch('prepare_data', *args, code=2)
  assert 'nothing would be kept' in err


def test_quick_evals_choose_conversations_with_targets(tmp_path):
  """Most are cut before the assistant's turn; those have no targets."""
  words = [f'{i:07b}'.replace('0', 'e').replace('1', 's') for i in range(120)]
  talks = [
    [user(word + ('r' * 40 if i % 8 else '')), assistant('as')]
    for i, word in enumerate(words)
  ]
  text = '\n'.join(map(json.dumps, talks))
  documents = open_memory(text, 'chat', CHAR, tmp_path, val_fraction=0.3)
  dataset = batches_of(documents, CHAR, loss_on='assistant')
  for windows in (1, 2, 4):
    batches = list(dataset.eval_batches('val', windows))
    rows = sum(int((b['weights'].sum(-1) > 0).sum()) for b in batches)
    assert rows == windows
  batches = batches_of(documents, CHAR).eval_batches('val', 4)
  assert sum(int((b['weights'].sum(-1) > 0).sum()) for b in batches) == 4
