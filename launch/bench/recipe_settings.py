"""What a recipe of configs brings to a run with a budget."""

from configs import budget
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
  """The values of a recipe for all that a plan would choose.

  Of conversations the context is not among them: it decides how much of each
  is read, and evaluated.
  """
  values = flatten(config_flag.load_config(f'configs/{recipe}.py').to_dict())
  keys = ' '.join(budget.CHOSEN.values()).split()
  found = {key: values[key] for key in keys if key not in OF_THE_TEXT}
  if detect_format(find_sources(text)) == 'chat':
    del found['model.block_size']
  if found['data.tokenizer'] == 'char':
    del found['data.vocab_size']  # It would ask for pieces.
  return found | {'model.mlp': values['model.mlp']}
