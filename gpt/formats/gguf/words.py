"""The rules by which llama.cpp's byte-level BPE cuts text into words.

A GGUF file names its rule; a tokenizer.json writes it out.
"""

import dataclasses
from typing import Any

from gpt.tokenizers import hf_parts

Spec = dict[str, Any]

BYTE_LEVEL = {
  'type': 'ByteLevel',
  'add_prefix_space': False,
  'trim_offsets': True,
  'use_regex': True,
}
DIGITS = {'type': 'Digits', 'individual_digits': True}
PATTERN = (
  "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}%s| ?"
  '[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+'
)


@dataclasses.dataclass(frozen=True)
class Rule:
  """Parts of a tokenizer.json.

  Attributes:
    ignore_merges: a word that is a token is taken whole.
  """

  pre_tokenizer: Spec
  normalizer: Spec | None = None
  ignore_merges: bool = False


def _split(numbers: str) -> Spec:
  """Words and numbers of at most as many digits, apart."""
  split = {
    'type': 'Split',
    'pattern': {'Regex': PATTERN % numbers},
    'behavior': 'Isolated',
    'invert': False,
  }
  bytes_only = BYTE_LEVEL | {'use_regex': False}
  return {'type': 'Sequence', 'pretokenizers': [split, bytes_only]}


RULES = {
  'gpt-2': Rule(BYTE_LEVEL),
  'smollm': Rule({'type': 'Sequence', 'pretokenizers': [DIGITS, BYTE_LEVEL]}),
  'llama-bpe': Rule(_split('{1,3}'), ignore_merges=True),
  'qwen2': Rule(_split(''), {'type': 'NFC'}),
}
# Other names of the same rules, which are only read.
ALIASES = {
  'phi-2': 'gpt-2',
  'starcoder': 'smollm',
  'refact': 'smollm',
  'llama3': 'llama-bpe',
  'llama-v3': 'llama-bpe',
  'deepseek-r1-qwen': 'qwen2',
}


def names() -> list[str]:
  """All names that `rule` knows."""
  return [*RULES, *ALIASES]


def rule(name: str) -> Rule | None:
  """The rule of tokenizer.ggml.pre; None for an unknown name."""
  return RULES.get(ALIASES.get(name, name))


def name_of(spec: Spec) -> str | None:
  """The name of a tokenizer.json's rule; None if it has none."""
  given = _essence(
    spec.get('pre_tokenizer'),
    spec.get('normalizer'),
    bool(spec['model'].get('ignore_merges')),
  )
  for name, found in RULES.items():
    if given == _essence(
      found.pre_tokenizer, found.normalizer, found.ignore_merges
    ):
      return name
  return None


def _essence(
  pre_tokenizer: Spec | None, normalizer: Spec | None, ignore_merges: bool
) -> tuple[Any, ...]:
  """The key of the word rule; equal rules have equal keys."""
  steps = []
  for step in hf_parts.steps(pre_tokenizer, 'pretokenizers'):
    match step['type']:
      case 'ByteLevel':
        steps.append(
          (
            'ByteLevel',
            step.get('add_prefix_space', True),
            step.get('use_regex', True),
          )
        )
      case 'Digits':
        steps.append(('Digits', step.get('individual_digits', False)))
      case 'Split':
        steps.append(
          (
            'Split',
            str(step['pattern']),
            step['behavior'].lower(),
            step.get('invert', False),
          )
        )
      case other:
        steps.append((other,))
  before = [s['type'] for s in hf_parts.steps(normalizer, 'normalizers')]
  return tuple(steps), tuple(before), ignore_merges
