"""Chat templates beside transformers' own apply_chat_template.

Needs transformers (extra: hf-test), so it is skipped where that is missing;
test_chat_template.py compares with texts it gave.
"""

import json
import random
import warnings

import numpy as np
import pytest
import tokenizers

from gpt.data.sample_text import sample_text
from gpt.formats.convert import export
from gpt.tokenizers import build_tokenizer
from gpt.tokenizers.chat_template import template_of
from gpt.tokenizers.template_files import CHATML
from tests.support.chat_templates import MODELS, tokenizer_json, tokenizer_of
from tests.support.workdirs import make_run

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings('default')]
PIECES = ['hello', '\n', ' ', '  ', 'w\u00f6rld', '\U0001f642', '\n\n', '\t']
PIECES += ['The king', 'user', 'assistant', '<b>', '1 < 2', "[x] don't", '|']


def other_tokenizer(name):
  """The same tokenizer and template in transformers."""
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    reason = 'extra hf-test is needed'
    library = pytest.importorskip('transformers', reason=reason)
  template, _, (bos, eos, *_), _ = MODELS[name]
  return library.PreTrainedTokenizerFast(
    tokenizer_object=tokenizers.Tokenizer.from_str(tokenizer_json(name)),
    bos_token=bos,
    eos_token=eos,
    clean_up_tokenization_spaces=False,
    chat_template=template,
  )


def random_talk(rng, thinks):
  def text():
    return ''.join(rng.choices(PIECES, k=rng.randint(1, 7)))

  talk = [{'role': 'system', 'content': text()}] if rng.random() < 0.5 else []
  for _ in range(rng.randint(1, 3)):
    talk.append({'role': 'user', 'content': text()})
    reply = {'role': 'assistant', 'content': text()}
    if thinks and rng.random() < 0.5:
      reply['content'] = f'<think>\n{text()}\n</think>\n\n{text()}'
    if thinks and rng.random() < 0.3:
      reply['reasoning_content'] = text()
    talk.append(reply)
  return talk


@pytest.mark.parametrize('name', MODELS)
def test_ids_of_random_conversations_are_equal(name):
  theirs, ours = other_tokenizer(name), template_of(tokenizer_of(name))
  rng = random.Random(name)
  continued = 0
  for _ in range(100):
    talk = random_talk(rng, name == 'qwen_3')
    whole = theirs.apply_chat_template(talk, return_dict=False)
    assert ours.ids(talk, prompt=False) == whole
    prompt = theirs.apply_chat_template(
      talk[:-1], add_generation_prompt=True, return_dict=False
    )
    assert ours.ids(talk[:-1]) == prompt
    try:
      begun = theirs.apply_chat_template(
        talk, continue_final_message=True, return_dict=False
      )
    except ValueError:  # It trims or splits the text and gives up.
      continue
    continued += 1
    assert ours.continued_ids(talk) == begun
  assert continued > 20


def test_the_assistants_tokens_are_equal():
  """Marked by {% generation %}, and found without it."""
  theirs = other_tokenizer('chatml_marked')
  marked = template_of(tokenizer_of('chatml_marked'))
  found = template_of(tokenizer_of('chatml'))
  rng = random.Random(0)
  for _ in range(100):
    talk = random_talk(rng, False)
    if talk[0]['role'] != 'system':  # The other template adds one.
      talk.insert(0, {'role': 'system', 'content': 'Be brief.'})
    wanted = theirs.apply_chat_template(
      talk, return_dict=True, return_assistant_tokens_mask=True
    )
    mask = [bool(x) for x in wanted['assistant_masks']]
    assert any(mask)
    assert marked.conversation(talk) == (wanted['input_ids'], mask)
    assert found.conversation(talk) == (wanted['input_ids'], mask)


@pytest.mark.parametrize('name', ['chatml', 'llama_3', 'qwen_3', 'trained'])
def test_exports_carry_the_template(name, tmp_path):
  """Also for a tokenizer trained here, whose tokens are spelled otherwise."""
  other_tokenizer('chatml')  # Skips without the library.
  import transformers

  if name == 'trained':
    tokenizer = build_tokenizer(
      'hf', [sample_text()[:20_000]], 320, MODELS['chatml'][2]
    )
    tokenizer.chat_template = CHATML
  else:
    tokenizer = tokenizer_of(name)
  shape = {'n_embd': 8, 'n_head': 2, 'n_layer': 1}
  make_run(tmp_path / 'run', tokenizer, lambda _, x: np.zeros(x), **shape)
  export(tmp_path / 'run', 'best', 'hf', tmp_path / 'hf')
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / 'hf')
  talk = random_talk(random.Random(1), False)
  ids = theirs.apply_chat_template(talk[:-1], add_generation_prompt=True)
  ours = template_of(tokenizer)
  assert ids['input_ids'] == ours.ids(talk[:-1])
  config = json.loads((tmp_path / 'hf' / 'generation_config.json').read_text())
  assert set(config['eos_token_id']) == set(ours.stop_ids)
