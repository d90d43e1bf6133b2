"""Training data in the form of a chat template."""

import json
import types

import numpy as np
import pytest

from gpt.data import prepare, templated
from gpt.errors import UserError
from gpt.tokenizers import build_tokenizer, chat_format, load_tokenizer
from gpt.tokenizers.chat_template import template_of
from gpt.tokenizers.template_files import CHATML
from tests.support.chat_templates import MODELS, tokenizer_of
from tests.support.data_tools import data_config
from tests.support.document_tools import (
  batches_of,
  conversations,
  jsonl,
  open_memory,
  write_lines,
)

TALKS = conversations(40)
STRICT = MODELS['llama_2'][0]


def turn(role, text):
  return {'role': role, 'content': text}


@pytest.mark.parametrize('name', ['chatml', 'llama_2', 'qwen_3'])
def test_documents_are_the_templates_ids_and_mask(name, tmp_path):
  """Tokens that end a document may occur within one, too."""
  tokenizer = tokenizer_of(name)
  docs = open_memory(jsonl(*TALKS), 'chat', tokenizer, tmp_path)
  assert len(docs) == len(TALKS)
  for i, talk in enumerate(TALKS):
    ids, mask = template_of(tokenizer).conversation(talk)
    assert docs.read(i).tolist() == ids
    assert docs.assistant(i).tolist() == mask
    assert docs.lengths[i] == len(ids)
  again = open_memory(jsonl(*TALKS), 'chat', tokenizer, tmp_path)
  assert np.array_equal(again.tokens, docs.tokens)  # From the cache.


@pytest.mark.parametrize('packing', [False, True])
def test_only_the_assistants_tokens_have_weight(packing, tmp_path):
  tokenizer = tokenizer_of('chatml')
  docs = open_memory(jsonl(*TALKS), 'chat', tokenizer, tmp_path)
  longest = int(docs.lengths.max())
  counted = {'all': 0, 'assistant': 0}
  for loss_on in counted:
    ds = batches_of(
      docs, tokenizer, longest, 1, loss_on=loss_on, packing=packing
    )
    for step in range(ds.steps_per_epoch):
      batch = ds.batch_at(step)
      counted[loss_on] += int(batch['weights'].sum())
      for ids, weights in zip(batch['tokens'], batch['weights']):
        chosen = ids[1:][weights > 0]
        if loss_on == 'assistant':
          ends = (chosen == tokenizer.special_tokens['<|im_end|>']).sum()
          starts = (chosen == tokenizer.special_tokens['<|im_start|>']).sum()
          assert ends and not starts
  train = docs.chosen('train')
  assert counted['assistant'] == sum(docs.assistant(i).sum() for i in train)
  assert counted['all'] == sum(docs.lengths[i] - 1 for i in train)


def test_conversations_with_equal_questions_share_a_split(tmp_path):
  talks = [
    [turn('user', q), turn('assistant', a)]
    for q in ('one', 'two', 'three', 'four')
    for a in ('b', 'c', 'd')
  ]
  docs = open_memory(
    jsonl(*talks),
    'chat',
    tokenizer_of('chatml'),
    tmp_path,
    val_fraction=0.5,
  )
  held_out = docs.held_out.reshape(4, 3)
  assert (held_out.all(1) | ~held_out.any(1)).all()
  assert held_out.any() and not held_out.all()


def test_another_template_is_another_cache():
  tokenizer = tokenizer_of('chatml')
  other = types.SimpleNamespace(chat_template=tokenizer.chat_template + ' ')
  assert templated.name(tokenizer) != templated.name(other)


def test_a_refused_conversation_is_named_by_its_line(tmp_path):
  talks = [
    [turn('user', 'a'), turn('assistant', 'b')],
    [turn('user', 'a'), turn('user', 'b'), turn('assistant', 'c')],
  ]
  with pytest.raises(UserError, match=r'^line 2 \[text 0\]: .* must alternate'):
    open_memory(jsonl(*talks), 'chat', tokenizer_of('llama_2'), tmp_path)
  assert not list(tmp_path.rglob('tokens-*'))


def config_with(tmp_path, **changes):
  path = write_lines(tmp_path / 'talks.jsonl', TALKS)
  return data_config(path, 'chat', **{'tokenizer': 'hf', **changes})


def test_a_new_run_takes_a_template_by_name(tmp_path):
  config = config_with(tmp_path, chat_template='chatml', vocab_size=420)
  tokenizer, docs = prepare.prepare(config, tmp_path / 'run')
  assert tokenizer.chat_template == CHATML
  saved = load_tokenizer(tmp_path / 'run')
  assert saved.chat_template == CHATML
  assert {'<|im_start|>', '<|im_end|>'} <= saved.special_tokens.keys()
  ids = docs.read(0).tolist()
  assert ids[0] == saved.special_tokens['<|im_start|>']
  assert chat_format.stop_ids(saved)[0] == saved.special_tokens['<|im_end|>']
  # A start that was cut short keeps what it made; another template does not.
  again, _ = prepare.prepare(config, tmp_path / 'run')
  assert again.fingerprint == tokenizer.fingerprint
  config.chat_template = ''
  plain, _ = prepare.prepare(config, tmp_path / 'run')
  assert plain.chat_template == ''
  assert chat_format.has_chat_tokens(plain)


def test_a_run_keeps_its_template(tmp_path):
  path = tmp_path / 'mine.jinja'
  path.write_text(CHATML + ' ')
  config = config_with(tmp_path, chat_template=str(path), vocab_size=420)
  prepare.prepare(config, tmp_path / 'run')
  begun, _ = prepare.prepare(config, tmp_path / 'run', begun=True)
  assert begun.chat_template == CHATML + ' '
  path.write_text(CHATML)
  with pytest.raises(UserError, match='a run keeps its template'):
    prepare.prepare(config, tmp_path / 'run', begun=True)
  path.unlink()
  begun, _ = prepare.prepare(config, tmp_path / 'run', begun=True)
  assert begun.chat_template == CHATML + ' '


@pytest.mark.parametrize(
  'template, problem',
  [
    (None, 'no such chat template'),
    ('', 'is empty'),
    ('{% for %}', 'wrong in line 1'),
  ],
)
def test_a_bad_template_stops_a_run_before_it_begins(
  template, problem, tmp_path
):
  path = tmp_path / 'mine.jinja'
  if template is not None:
    path.write_text(template)
  config = config_with(tmp_path, chat_template=str(path), vocab_size=420)
  with pytest.raises(UserError, match=problem):
    prepare.prepare(config, tmp_path / 'run')
  assert not (tmp_path / 'run' / 'tokenizer').exists()


def test_a_given_tokenizer_brings_its_template(tmp_path):
  given = build_tokenizer(
    'hf', [json.dumps(TALKS)], 420, ('<|im_start|>', '<|im_end|>')
  )
  given.chat_template = CHATML
  given.save(tmp_path / 'given')
  config = config_with(
    tmp_path, tokenizer_path=str(tmp_path / 'given'), vocab_size=420
  )
  tokenizer, _ = prepare.prepare(config, tmp_path / 'run')
  assert tokenizer.chat_template == CHATML
