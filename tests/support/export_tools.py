"""Models to export, shared by several test files."""

import numpy as np
import pytest

from gpt.data.sample_text import sample_text
from gpt.tokenizers import build_tokenizer
from gpt.tokenizers.chat_format import CHAT_TOKENS
from launch import config_flag
from tests.support.workdirs import make_run

TEXT = sample_text()[:30_000]


def random_weights(seed=0, scale=0.3):
  rng = np.random.default_rng(seed)
  return lambda name, shape: rng.normal(0, scale, shape)


@pytest.fixture(scope='module')
def bpe():
  return build_tokenizer('hf', [TEXT], 320, CHAT_TOKENS)


@pytest.fixture(scope='module')
def chat_run(tmp_path_factory, bpe):
  """A microgpt model with a chat tokenizer and random weights."""
  workdir = tmp_path_factory.mktemp('runs') / 'chat'
  make_run(workdir, bpe, random_weights(), arch='microgpt')
  return workdir


def config():
  return config_flag.load_config('configs/default.py')
