"""Overrides that give a run with a budget the settings of a recipe."""

from configs import budget, default
from gpt.data.sources import find_sources
from gpt.planning.text import detect_format
from gpt.runs.config_file import flatten
from launch import config_flag

# What a plan chooses for its text, whoever has chosen the rest.
OF_THE_TEXT = (
  'total_steps',
  'data.format',
  'data.loss_on',
  'data.packing',
  'data.val_fraction',
  'eval.every',
  'eval.windows',
  'checkpoint.every',
  'sample.prompt',
)


def settings(recipe: str, text: str) -> dict:
  """All of a recipe but what belongs to its text, its seed and its length.

  The context of conversations is left out, too: it decides how much of each is
  read, and evaluated.
  """
  values = flatten(config_flag.load_config(f'configs/{recipe}.py').to_dict())
  usual = flatten(default.get_config().to_dict())
  chosen = {key for keys in budget.CHOSEN.values() for key in keys.split()}
  changed = {key for key, x in values.items() if x != usual.get(key)}
  dropped = {'seed', 'data.path', *OF_THE_TEXT}
  if detect_format(find_sources(text)) == 'chat':
    dropped.add('model.block_size')
  if values['data.tokenizer'] == 'char':
    dropped.add('data.vocab_size')  # It would ask for pieces.
  return {key: values[key] for key in sorted((chosen | changed) - dropped)}
