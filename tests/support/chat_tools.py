"""A model to chat with, a home to do it in, and what it must reply."""

import numpy as np
import pytest

from gpt.decoding.chat_session import ChatSession
from gpt.runs.load import load_model
from gpt.tokenizers import build_tokenizer, chat_format
from tests.support.workdirs import make_run

LETTERS = 'abcdefghijklmnopqrstuvwxyz ABC.,!?/0123456789'
TOKENIZER = build_tokenizer('char', [LETTERS], 0, chat_format.CHAT_TOKENS)


def make_chatter(workdir, tokenizer=TOKENIZER, says=LETTERS, end=0.0, **model):
  """A run whose model draws every token from `says`, whatever came before.

  Args:
    end: logit of <|end_turn|>, beside 0 of a letter.
  """

  def fill(name, shape):
    out = np.zeros(shape)
    if name == 'wpe':
      out[:, 0] = 1
    if name == 'lm_head':
      out[:, 0] = -100
      out[tokenizer.encode(says), 0] = 0
      out[tokenizer.special_tokens[chat_format.END_TURN], 0] = end
    return out

  defaults = {'n_embd': 8, 'n_head': 2, 'n_layer': 1, 'block_size': 64}
  make_run(
    workdir, tokenizer, fill, data={'format': 'chat'}, **{**defaults, **model}
  )
  return workdir


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
  """A home of its own: history and default model live there."""
  monkeypatch.setenv('HOME', str(tmp_path))
  monkeypatch.setenv('TERM', 'dumb')
  return tmp_path


def expected(workdir, *said, seed=42, **kwargs):
  """The replies the library gives to the same words."""
  session = ChatSession(load_model(workdir), seed=seed, **kwargs)
  return [''.join(session.say(text)) for text in said], session
