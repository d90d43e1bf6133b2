"""Chat templates beside transformers' own apply_chat_template.

Needs transformers (extra: hf-test), so it is skipped where that is missing;
test_chat_template.py compares with texts it gave.
"""

import random
import warnings

import pytest
import tokenizers

from gpt.tokenizers.chat_template import template_of
from tests.support.chat_templates import MODELS, tokenizer_json, tokenizer_of

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
