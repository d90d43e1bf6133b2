"""The flags of sampling, which launch.generate and launch.chat share."""

from absl import flags

TEMPERATURE = flags.DEFINE_float(
  'temperature',
  0.8,
  'Higher is more surprising; 0 or less takes the likeliest.',
)
TOP_P = flags.DEFINE_float(
  'top_p',
  0.9,
  'Sample from the likeliest tokens of this total probability. Documents: '
  'default 1, temperature alone.',
)
TOP_K = flags.DEFINE_integer(
  'top_k', 0, 'Sample from this many likeliest tokens. 0 or less: off.'
)
MIN_P = flags.DEFINE_float(
  'min_p', 0.0, 'Drop tokens less likely than this times the likeliest.'
)
REPETITION_PENALTY = flags.DEFINE_float(
  'repetition_penalty', 1.0, 'Above 1 makes tokens seen before less likely.'
)


def options() -> dict:
  """What was asked for, as keywords of sampling.params."""
  return {
    'temperature': TEMPERATURE.value,
    'top_p': TOP_P.value,
    'top_k': TOP_K.value,
    'min_p': MIN_P.value,
    'repetition': REPETITION_PENALTY.value,
  }
