"""Replies that may call functions -> OpenAI's JSON, whole or in chunks."""

import secrets
from collections.abc import Callable, Iterable
from typing import Any

from gpt.decoding.calls import CallReader, Piece
from serving.engine.events import Token
from serving.http.replies import ChatReply


class ToolReply(ChatReply):
  """POST /v1/chat/completions with tools.

  Args:
    new_reader: makes the CallReader of a choice.
  """

  def __init__(
    self, *args: Any, new_reader: Callable[[], CallReader], **kwargs: Any
  ) -> None:
    super().__init__(*args, **kwargs)
    self._new_reader = new_reader
    self._readers: dict[int, CallReader] = {}

  def _reader(self, index: int) -> CallReader:
    return self._readers.setdefault(index, self._new_reader())

  def _reason(self, index: int, reason: str) -> str:
    called = self._reader(index).count and reason == 'stop'
    return 'tool_calls' if called else reason

  def whole_choice(
    self, index: int, text: str, tokens: list[Token], reason: str
  ) -> dict[str, Any]:
    reader = self._reader(index)
    pieces = reader.feed(text) + reader.finish()
    content = ''.join(p.text for p in pieces if p.call < 0)
    calls = [
      {k: v for k, v in call.items() if k != 'index'}
      for call in self._calls(pieces)
    ]
    choice = super().whole_choice(
      index, content, tokens, self._reason(index, reason)
    )
    if calls:
      choice['message'] |= {'content': content or None, 'tool_calls': calls}
    return choice

  def _calls(self, pieces: Iterable[Piece]) -> list[dict[str, Any]]:
    """The new parts of calls, one entry for each call."""
    calls: dict[int, dict[str, Any]] = {}
    for piece in pieces:
      if piece.call < 0:
        continue
      if piece.name:
        calls[piece.call] = {
          'index': piece.call,
          'id': f'call_{secrets.token_hex(12)}',
          'type': 'function',
          'function': {'name': piece.name, 'arguments': piece.text},
        }
      elif piece.call in calls:
        calls[piece.call]['function']['arguments'] += piece.text
      else:
        calls[piece.call] = {
          'index': piece.call,
          'function': {'arguments': piece.text},
        }
    return list(calls.values())

  def _news(self, pieces: list[Piece]) -> dict[str, Any]:
    """The delta of new pieces."""
    content = ''.join(p.text for p in pieces if p.call < 0)
    calls = self._calls(pieces)
    delta: dict[str, Any] = {'content': content} if content else {}
    return delta | ({'tool_calls': calls} if calls else {})

  def chunk_choice(
    self, index: int, text: str, tokens: list[Token]
  ) -> dict[str, Any]:
    pieces = self._reader(index).feed(text)
    return self._delta(index, self._news(pieces), tokens)

  def last_choice(self, index: int, reason: str) -> dict[str, Any]:
    held = self._reader(index).finish()
    reason = self._reason(index, reason)
    return self._delta(index, self._news(held), reason=reason)
