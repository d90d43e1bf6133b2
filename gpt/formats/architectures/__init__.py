"""Model classes of transformers, each described once for both directions."""

from collections.abc import Mapping
from typing import Any

from gpt.errors import UserError
from gpt.formats.architectures import features
from gpt.formats.architectures.arcee import ARCEE
from gpt.formats.architectures.conform import conform, nearest, simplify
from gpt.formats.architectures.family import Family
from gpt.formats.architectures.gpt2 import GPT2
from gpt.formats.architectures.llama import LLAMA
from gpt.formats.architectures.nanochat import NANOCHAT
from gpt.formats.architectures.qwen3 import QWEN3
from gpt.formats.architectures.weights import from_hf_tensors, to_hf_tensors
from gpt.model import GPTConfig

FAMILIES = {
  family.model_type: family for family in (LLAMA, QWEN3, GPT2, ARCEE, NANOCHAT)
}

__all__ = [
  'FAMILIES',
  'Family',
  'choose',
  'conform',
  'from_hf_config',
  'from_hf_tensors',
  'misfits',
  'simplify',
  'to_hf_tensors',
]


def from_hf_config(
  config: Mapping[str, Any], where: str
) -> tuple[Family, dict[str, Any]]:
  """The family of a config.json, and its options with 'vocab_size'.

  Args:
    where: the file, for errors.

  Raises:
    UserError: a model type or a feature that rgpt lacks.
  """
  if feature := features.missing_feature(config):
    raise UserError(f'{where}: this model has {feature}, which rgpt lacks')
  model_type = config.get('model_type')
  if not isinstance(model_type, str) or model_type not in FAMILIES:
    raise UserError(
      f'{where}: model_type is {features.quoted(model_type)}; known: '
      f'{", ".join(FAMILIES)}'
    )
  family = FAMILIES[model_type]
  return family, family.read_config(config, where)


def misfits(family: Family, cfg: GPTConfig) -> list[str]:
  """Reasons why no equal model fits the family; [] if one does."""
  return family.misfits(nearest(family, cfg))


def choose(cfg: GPTConfig) -> tuple[Family | None, list[str]]:
  """(a family that holds an equal model, []), or (None, reasons).

  The reasons are those of the family that lacks least.
  """
  found = {name: misfits(family, cfg) for name, family in FAMILIES.items()}
  best = min(found, key=lambda name: len(found[name]))
  if found[best]:
    return None, [f'{FAMILIES[best].hf_class}: {x}' for x in found[best]]
  return FAMILIES[best], []
