"""Chat templates in the style of known models, and tokenizers to go with them.

The texts are our own; what each does is what its family does: where the system
text goes, which control tokens stand around a turn, what is trimmed, which
conversations are refused.
"""

import functools
import json

import tokenizers
from tokenizers import (
  AddedToken,
  decoders,
  models,
  normalizers,
  pre_tokenizers,
  trainers,
)

from gpt.data.sample_text import sample_text
from gpt.tokenizers import HfTokenizer

CHATML = (
  "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
  "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}"
  "{% endif %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}"
  "{{ '<|im_end|>' + '\n' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# With the tag that marks the assistant's text.
CHATML_MARKED = (
  '{%- for m in messages %}\n'
  "{%- if m.role == 'assistant' %}\n"
  "{{- '<|im_start|>assistant\n' }}\n"
  "{%- generation %}{{- m.content + '<|im_end|>' }}{%- endgeneration %}\n"
  "{{- '\n' }}\n"
  '{%- else %}\n'
  "{{- '<|im_start|>' ~ m.role ~ '\n' ~ m.content ~ '<|im_end|>\n' }}\n"
  '{%- endif %}\n'
  '{%- endfor %}\n'
  "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
LLAMA_2 = """\
{% if messages[0]['role'] == 'system' %}
{% set turns = messages[1:] %}
{% set system = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}
{% else %}
{% set turns = messages %}
{% set system = '' %}
{% endif %}
{% for m in turns %}
{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Turns must alternate: user, assistant, user, ...') }}
{% endif %}
{% set text = (system if loop.first else '') + m['content'] %}
{% if m['role'] == 'user' %}
{{ bos_token + '[INST] ' + text.strip() + ' [/INST]' }}
{% elif m['role'] == 'assistant' %}
{{ ' ' + text.strip() + ' ' + eos_token }}
{% endif %}
{% endfor %}"""
LLAMA_3 = """\
{{- bos_token }}
{%- if not date_string is defined %}
  {%- set date_string = '26 Jul 2024' %}
{%- endif %}
{%- if messages[0].role == 'system' %}
  {%- set system = messages[0]['content'] | trim %}
  {%- set messages = messages[1:] %}
{%- else %}
  {%- set system = '' %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\n\n' }}
{{- 'Today Date: ' + date_string + '\n\n' + system + '<|eot_id|>' }}
{%- for message in messages %}
  {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}
  {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
  {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"""
QWEN_3 = """\
{%- if messages[0].role == 'system' %}
  {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}
{%- set ns = namespace(last=messages|length - 1, searching=true) %}
{%- for message in messages[::-1] %}
  {%- set index = (messages|length - 1) - loop.index0 %}
  {%- if ns.searching and message.role == 'user' %}
    {%- set ns.searching = false %}
    {%- set ns.last = index %}
  {%- endif %}
{%- endfor %}
{%- for message in messages %}
  {%- if message.content is string %}
    {%- set content = message.content %}
  {%- else %}
    {%- set content = '' %}
  {%- endif %}
  {%- if message.role == 'user' or (message.role == 'system' and loop.index0) %}
    {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' }}
  {%- elif message.role == 'assistant' %}
    {%- set thoughts = '' %}
    {%- if message.reasoning_content is string %}
      {%- set thoughts = message.reasoning_content %}
    {%- elif '</think>' in content %}
      {%- set thoughts = content.split('</think>')[0].rstrip('\n') %}
      {%- set thoughts = thoughts.split('<think>')[-1].lstrip('\n') %}
      {%- set content = content.split('</think>')[-1].lstrip('\n') %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\n' }}
    {%- if loop.index0 > ns.last and (loop.last or thoughts) %}
      {{- '<think>\n' + thoughts.strip('\n') + '\n</think>\n\n' }}
      {{- content.lstrip('\n') + '<|im_end|>\n' }}
    {%- else %}
      {{- content + '<|im_end|>\n' }}
    {%- endif %}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
  {{- '<|im_start|>assistant\n' }}
  {%- if enable_thinking is defined and enable_thinking is false %}
    {{- '<think>\n\n</think>\n\n' }}
  {%- endif %}
{%- endif %}"""
ZEPHYR = """\
{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\n' + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""
# Phi-3 and others join their control tokens from parts.
PHI_3 = """\
{% for message in messages %}
{{ '<|' + message['role'] + '|>\n' + message['content'] | trim + '<|end|>\n' }}
{% endfor %}
{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"""

# Name -> (template, style of the tokenizer, special tokens, marks).
MODELS = {
  'chatml': (CHATML, 'bytes', ('<|im_start|>', '<|im_end|>'), ()),
  'chatml_marked': (CHATML_MARKED, 'bytes', ('<|im_start|>', '<|im_end|>'), ()),
  'llama_2': (LLAMA_2, 'sentencepiece', ('<s>', '</s>'), ()),
  'llama_3': (
    LLAMA_3,
    'bytes',
    (
      '<|begin_of_text|>',
      '<|eot_id|>',
      '<|start_header_id|>',
      '<|end_header_id|>',
    ),
    (),
  ),
  'qwen_3': (
    QWEN_3,
    'bytes',
    ('<|endoftext|>', '<|im_end|>', '<|im_start|>'),
    ('<think>', '</think>', '<tool_call>'),
  ),
  'zephyr': (ZEPHYR, 'sentencepiece', ('<s>', '</s>'), ()),
  'phi_3': (
    PHI_3,
    'bytes',
    ('<|endoftext|>', '<|end|>', '<|user|>', '<|assistant|>', '<|system|>'),
    (),
  ),
}
VOCABULARY = 600


@functools.cache
def tokenizer_json(name: str) -> str:
  """A small tokenizer.json of this model's style."""
  _, style, special, marks = MODELS[name]
  tokenizer = tokenizers.Tokenizer(models.BPE(byte_fallback=style != 'bytes'))
  if style == 'bytes':
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if name == 'qwen_3':
      tokenizer.normalizer = normalizers.NFC()
  else:
    tokenizer.normalizer = normalizers.Sequence(
      [normalizers.Prepend('\u2581'), normalizers.Replace(' ', '\u2581')]
    )
    tokenizer.decoder = decoders.Sequence(
      [
        decoders.Replace('\u2581', ' '),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(' ', 1, 0),
      ]
    )
    alphabet = []
  extra = [f'<0x{i:02X}>' for i in range(256)] if style != 'bytes' else []
  trainer = trainers.BpeTrainer(
    vocab_size=VOCABULARY,
    special_tokens=[
      *(AddedToken(t, special=True, normalized=False) for t in special),
      *extra,
    ],
    initial_alphabet=alphabet,
    show_progress=False,
  )
  lines = sample_text()[:60_000].splitlines(keepends=True)
  # Words of chats, so that merges cross what a template joins.
  lines += ['user\nassistant\nsystem\n\n\n[INST] [/INST] <<SYS>>\n'] * 40
  tokenizer.train_from_iterator(lines, trainer)
  spec = json.loads(tokenizer.to_str())
  spec['added_tokens'] = [
    t for t in spec['added_tokens'] if t['content'] not in extra
  ]
  tokenizer = tokenizers.Tokenizer.from_str(json.dumps(spec))
  tokenizer.add_tokens([AddedToken(t, normalized=False) for t in marks])
  return tokenizer.to_str()


@functools.cache
def tokenizer_of(name: str) -> HfTokenizer:
  """The tokenizer of this model, with its chat template."""
  template, _, special, _ = MODELS[name]
  tokenizer = HfTokenizer(
    tokenizer_json(name).encode(), bos=special[0], eos=special[1]
  )
  tokenizer.chat_template = template
  return tokenizer


# Harmless conversations: their rendering by transformers is in
# tests/tokenizers/rendered.json.
TALKS = {
  'short': [
    {'role': 'user', 'content': 'Hello there'},
    {'role': 'assistant', 'content': 'Hi!'},
  ],
  'spaces': [
    {'role': 'system', 'content': '\n Be brief.  \n'},
    {'role': 'user', 'content': '  two  spaces\n\n\nand lines \n'},
    {'role': 'assistant', 'content': '\n\nYes.\n'},
    {'role': 'user', 'content': 'caf\u00e9 \U0001f642 1 < 2 [x] {{ y }} <b>'},
    {'role': 'assistant', 'content': 'user\nassistant\n '},
  ],
  'thinking': [
    {'role': 'user', 'content': 'What is 1 + 1?'},
    {'role': 'assistant', 'content': '<think>\nEasy.\n</think>\n\nTwo.'},
    {'role': 'user', 'content': 'And 2 + 2?'},
    {'role': 'assistant', 'content': '<think>\nHm.\n</think>\n\nFour.'},
  ],
}
