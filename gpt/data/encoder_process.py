"""A process that encodes blocks of a corpus; encoder_pool.py starts it.

It reads pickled messages of its parent from stdin, first a Task, then blocks,
and answers each block on stdout. It ends with its parent.
"""

import os
import pickle
import signal
import sys
import traceback
from typing import Any

from gpt.data.block_encoding import Task, encode_block
from gpt.errors import UserError
from gpt.tokenizers import load_tokenizer


def main() -> None:
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # The parent ends it.
  replies = os.fdopen(os.dup(1), 'wb')
  os.dup2(2, 1)  # Whatever a library prints must not be among the replies.
  messages = sys.stdin.buffer
  task: Task = pickle.load(messages)
  tokenizer = load_tokenizer(task.tokenizer)
  if tokenizer.fingerprint != task.fingerprint:
    raise ValueError('this tokenizer changes when it is saved and loaded')
  while True:
    try:
      source, before = pickle.load(messages)
    except EOFError:
      return
    reply: Any
    try:
      reply = encode_block(task, tokenizer, source, before)
    except UserError as e:
      reply = e
    except Exception:
      reply = traceback.format_exc()
    pickle.dump(reply, replies, pickle.HIGHEST_PROTOCOL)
    replies.flush()


if __name__ == '__main__':
  main()
