"""Ollama's Modelfile: its Go template gives the prompts of the Jinja one."""

import re

import pytest

from gpt.data.sample_text import sample_text
from gpt.formats.gguf.export import modelfile_text
from gpt.formats.gguf.vocabulary import tokenizer_keys
from gpt.tokenizers import build_tokenizer
from gpt.tokenizers.chat_format import CHAT_TOKENS, SYSTEM, build_prompt
from tests.support.go_template import render

TEXT = sample_text()[:20_000]
SAMPLE = {'temperature': 0.8, 'top_p': 0.9, 'top_k': 0}
CHATML = (
  (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
    '<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}'
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    '{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}'
  )
  .replace('<|im_start|>', '<im_start>')
  .replace('<|im_end|>', '<im_end>')
)
CONVERSATIONS = [
  [('user', 'Hi\n\nthere')],
  [('system', 'Rhyme.'), ('user', 'Hi')],
  [('user', 'a'), ('assistant', 'b'), ('user', 'c'), ('assistant', ''),
   ('user', 'd')],
  [('system', 's'), ('user', 'a'), ('assistant', 'b'), ('user', 'c')],
]  # fmt: skip


def ollama(text, messages):
  """The prompt that Ollama makes of a Modelfile and a conversation."""
  template = re.search(r'TEMPLATE """(.*?)"""', text, re.S)[1]
  system = ''.join(m['content'] for m in messages if m['role'] == 'system')
  named = [{'Role': m['role'], 'Content': m['content']} for m in messages]
  return render(template, {'System': system, 'Messages': named})


def as_messages(turns):
  return [{'role': role, 'content': content} for role, content in turns]


@pytest.mark.parametrize('names', [CHAT_TOKENS, (*CHAT_TOKENS, SYSTEM)])
@pytest.mark.parametrize('kind', ['hf', 'sentencepiece', 'char'])
def test_the_template_of_our_format_gives_our_prompts(kind, names):
  tokenizer = build_tokenizer(kind, [TEXT], 420, names)
  keys = tokenizer_keys(tokenizer)
  text, notes = modelfile_text('m.gguf', keys, tokenizer, 64, SAMPLE)
  assert not notes
  tokens = keys['tokenizer.ggml.tokens']
  special = {tokens[id]: id for id in tokenizer.special_tokens.values()}
  pattern = '|'.join(map(re.escape, special))
  for turns in CONVERSATIONS:
    messages = as_messages(turns)
    wanted, _ = build_prompt(messages, tokenizer, 10_000)
    # Text between control tokens is encoded apart, as we do.
    parts = re.split(f'({pattern})', ollama(text, messages))
    found = [
      id
      for part in parts
      for id in (
        [special[part]] if part in special else tokenizer.encode(part).tolist()
      )
    ]
    shown = lambda ids: [id for id in ids if tokenizer.token_bytes(id)]  # noqa: E731
    assert [i for i in found if i in special.values()] == [
      i for i in wanted if i in special.values()
    ]
    assert tokenizer.decode(shown(found)) == tokenizer.decode(shown(wanted))


def with_template(template):
  tokenizer = build_tokenizer('hf', [TEXT], 420, ('<|im_start|>', '<|im_end|>'))
  tokenizer.chat_template = template
  keys = tokenizer_keys(tokenizer)
  return modelfile_text('m.gguf', keys, tokenizer, 64, SAMPLE)


def test_chatml_keeps_its_default_system_text():
  text, notes = with_template(CHATML)
  assert not notes
  assert 'PARAMETER stop "<im_end>"\n' in text
  assert ollama(text, as_messages([('user', 'Hi')])) == (
    '<im_start>system\nBe kind.<im_end>\n<im_start>user\nHi<im_end>\n'
    '<im_start>assistant\n'
  )
  assert ollama(text, as_messages([('system', 'S'), ('user', 'Hi')])) == (
    '<im_start>system\nS<im_end>\n<im_start>user\nHi<im_end>\n'
    '<im_start>assistant\n'
  )


@pytest.mark.parametrize(
  'template',
  [
    "{{ messages[0]['content'] }}",  # Later messages are lost.
    '{% for m in messages %}{{ loop.index }}{{ m.content }}{% endfor %}',
    "{{ raise_exception('no') }}",
    CHATML.replace('Be kind.', "{{ '{{' }}"),
  ],
)
def test_a_template_that_go_cannot_express_is_left_out_and_said(template):
  text, notes = with_template(template)
  assert 'TEMPLATE' not in text
  assert 'no counterpart in Ollama' in notes[0]


def test_a_model_that_does_not_chat_gets_the_bare_prompt():
  tokenizer = build_tokenizer('char', [TEXT], 0)
  text, _ = modelfile_text(
    'm.gguf', tokenizer_keys(tokenizer), tokenizer, 64, SAMPLE
  )
  assert text == (
    'FROM ./m.gguf\nTEMPLATE """{{ .Prompt }}"""\nPARAMETER num_ctx 64\n'
    'PARAMETER temperature 0.8\nPARAMETER top_p 0.9\nPARAMETER top_k 0\n'
  )
