"""Small tokenizers in the forms that well-known models publish."""

import json
import pathlib

import tokenizers
from tokenizers import (
  AddedToken,
  Regex,
  Tokenizer,
  decoders,
  models,
  normalizers,
  pre_tokenizers,
  processors,
  trainers,
)

from gpt.data.sample_text import sample_text

LLAMA3 = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
  r' ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)
QWEN = LLAMA3.replace('{1,3}', '')
KINDS = ('gpt2', 'smollm2', 'llama3', 'qwen3', 'llama2', 'metaspace')


def byte_level(**options) -> pre_tokenizers.PreTokenizer:
  return pre_tokenizers.ByteLevel(add_prefix_space=False, **options)


def split(pattern: str) -> pre_tokenizers.PreTokenizer:
  return pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(Regex(pattern), 'isolated'),
      byte_level(use_regex=False),
    ]
  )


def trained(pre, names, **options) -> Tokenizer:
  tokenizer = Tokenizer(models.BPE(**options))
  tokenizer.pre_tokenizer = pre
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=700,
    show_progress=False,
    special_tokens=[AddedToken(n, special=True) for n in names],
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
  )
  tokenizer.train_from_iterator([sample_text()[:60_000]], trainer)
  return tokenizer


def sentencepiece_style(prefix: str) -> Tokenizer:
  """Llama 2's vocabulary: <unk>, <s>, </s>, 256 bytes, merges of letters."""
  base = Tokenizer(models.BPE())
  base.normalizer = normalizers.Replace(' ', '\u2581')
  base.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme='always')
  trainer = trainers.BpeTrainer(vocab_size=400, show_progress=False)
  base.train_from_iterator([sample_text()[:60_000]], trainer)
  spec = json.loads(base.to_str())
  names = ['<unk>', '<s>', '</s>', *(f'<0x{b:02X}>' for b in range(256))]
  learned = sorted(spec['model']['vocab'], key=spec['model']['vocab'].get)
  vocab = {name: i for i, name in enumerate([*names, *learned])}
  tokenizer = Tokenizer(
    models.BPE(
      vocab=vocab,
      merges=[tuple(m) for m in spec['model']['merges']],
      unk_token='<unk>',
      fuse_unk=True,
      byte_fallback=True,
    )
  )
  if prefix == 'normalizer':
    tokenizer.normalizer = normalizers.Sequence(
      [normalizers.Prepend('\u2581'), normalizers.Replace(' ', '\u2581')]
    )
  else:
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
      prepend_scheme='first', split=False
    )
  tokenizer.decoder = decoders.Sequence(
    [
      decoders.Replace('\u2581', ' '),
      decoders.ByteFallback(),
      decoders.Fuse(),
      decoders.Strip(' ', 1, 0),
    ]
  )
  tokenizer.add_special_tokens([AddedToken(n, special=True) for n in names[:3]])
  tokenizer.post_processor = processors.TemplateProcessing(
    single='<s> $A', pair='<s> $A <s> $B', special_tokens=[('<s>', 1)]
  )
  return tokenizer


def make(kind: str) -> Tokenizer:
  """A tokenizer of the `tokenizers` library; `kind` is one of KINDS."""
  if kind == 'gpt2':
    return trained(byte_level(), ['<|endoftext|>'])
  if kind == 'smollm2':
    digits = pre_tokenizers.Digits(individual_digits=True)
    return trained(
      pre_tokenizers.Sequence([digits, byte_level()]),
      ['<|endoftext|>', '<|im_start|>', '<|im_end|>'],
    )
  if kind == 'llama3':
    names = ['<|begin_of_text|>', '<|end_of_text|>', '<|eot_id|>']
    tokenizer = trained(split(LLAMA3), [])
    tokenizer.add_special_tokens([AddedToken(n, special=True) for n in names])
    bos = tokenizer.token_to_id(names[0])
    tokenizer.post_processor = processors.Sequence(
      [
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(
          single=f'{names[0]} $A', special_tokens=[(names[0], bos)]
        ),
      ]
    )
    return tokenizer
  if kind == 'qwen3':
    tokenizer = trained(split(QWEN), [])
    tokenizer.normalizer = normalizers.NFC()
    names = ['<|endoftext|>', '<|im_start|>', '<|im_end|>']
    tokenizer.add_special_tokens([AddedToken(n, special=True) for n in names])
    marks = ['<think>', '</think>', '<tool_call>']
    tokenizer.add_tokens(
      [AddedToken(n, special=False, normalized=False) for n in marks]
    )
    return tokenizer
  return sentencepiece_style('normalizer' if kind == 'llama2' else 'metaspace')


# What tokenizer_config.json says.
CONFIGS = {
  'gpt2': {
    'tokenizer_class': 'GPT2Tokenizer',
    'bos_token': '<|endoftext|>',
    'eos_token': '<|endoftext|>',
    'unk_token': '<|endoftext|>',
  },
  'smollm2': {
    'tokenizer_class': 'GPT2Tokenizer',
    'bos_token': '<|im_start|>',
    'eos_token': '<|im_end|>',
    'pad_token': '<|im_end|>',
    'unk_token': '<|endoftext|>',
  },
  'llama3': {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'bos_token': '<|begin_of_text|>',
    'eos_token': '<|eot_id|>',
  },
  'qwen3': {
    'tokenizer_class': 'Qwen2Tokenizer',
    'bos_token': None,
    'eos_token': '<|im_end|>',
    'pad_token': '<|endoftext|>',
    'add_bos_token': False,
  },
  'llama2': {
    'tokenizer_class': 'LlamaTokenizer',
    'bos_token': {'content': '<s>', '__type': 'AddedToken'},
    'eos_token': {'content': '</s>', '__type': 'AddedToken'},
    'unk_token': '<unk>',
    'add_bos_token': True,
    'add_eos_token': False,
    'legacy': False,
  },
  'metaspace': {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'bos_token': '<s>',
    'eos_token': '</s>',
    'unk_token': '<unk>',
  },
}
# The ids before every text, by the name of their token.
PREFIXES = {
  'gpt2': [],
  'smollm2': [],
  'llama3': ['<|begin_of_text|>'],
  'qwen3': [],
  'llama2': ['<s>'],
  'metaspace': ['<s>'],
}


def write(directory: pathlib.Path, kind: str) -> tokenizers.Tokenizer:
  """Writes tokenizer.json and tokenizer_config.json; returns the tokenizer."""
  tokenizer = make(kind)
  directory.mkdir(parents=True, exist_ok=True)
  (directory / 'tokenizer.json').write_text(tokenizer.to_str())
  config = json.dumps(CONFIGS[kind])
  (directory / 'tokenizer_config.json').write_text(config)
  return tokenizer
