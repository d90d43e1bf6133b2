"""Tokens of one choice -> the text that may be shown so far.

Two things are held back: an incomplete character, and text that could begin a
stop string. Both depend on the tokens alone, so the pieces join to the same
text however the tokens are grouped.
"""

from collections.abc import Iterable

from gpt.tokenizers import StreamDecoder, Tokenizer


class Stop:
  """A stop string with its failure table (Knuth, Morris, Pratt 1977).

  Attributes:
    fallback: for each match length, the next shorter match that still holds.
  """

  def __init__(self, text: str) -> None:
    self.text = text
    self.fallback = [0]
    k = 0
    for c in text[1:]:
      while k and text[k] != c:
        k = self.fallback[k - 1]
      k += text[k] == c
      self.fallback.append(k)


class StopMatcher:
  """Finds a Stop in a stream of characters; matchers share its table.

  Attributes:
    matched: length of the longest prefix of the stop string that ends here.
  """

  def __init__(self, stop: Stop) -> None:
    self.stop = stop.text
    self.matched = 0
    self._fallback = stop.fallback

  def feed(self, c: str) -> bool:
    """Takes one character; True if it completes the stop string."""
    k = self.matched
    while k and self.stop[k] != c:
      k = self._fallback[k - 1]
    self.matched = k + (self.stop[k] == c)
    return self.matched == len(self.stop)


class TextStream:
  """Turns token ids into text and ends at the first of `stops`.

  Args:
    after: the id before the first, see StreamDecoder.
    include: the stop string that is found is shown, too.

  Attributes:
    length: characters decoded so far, shown or not.
    shown: characters returned so far.
    stopped: a stop string was found; nothing more follows.
  """

  def __init__(
    self,
    tokenizer: Tokenizer,
    stops: Iterable[Stop] = (),
    after: int | None = None,
    include: bool = False,
  ) -> None:
    self._decoder = StreamDecoder(tokenizer, after)
    self._include = include
    self._held = ''
    self.watch(stops)
    self.length = 0
    self.shown = 0
    self.stopped = False

  def watch(self, stops: Iterable[Stop]) -> None:
    """Ends the text at the first of `stops` that begins from here on."""
    self._matchers = [StopMatcher(stop) for stop in stops]

  def feed(self, *ids: int) -> str:
    """The text that these tokens make showable."""
    return self._take(''.join(map(self._decoder.feed, ids)))

  def finish(self) -> str:
    """The rest of the text, once no more tokens come."""
    if self.stopped:
      return ''
    text = self._take(self._decoder.flush())
    if not self.stopped:
      text += self._held
      self.shown += len(self._held)
      self._held = ''
    return text

  def _take(self, piece: str) -> str:
    self.length += len(piece)
    if not self._matchers:
      self.shown += len(piece)
      return piece
    before = len(self._held)
    self._held += piece
    for i, c in enumerate(piece):
      ends = [len(m.stop) for m in self._matchers if m.feed(c)]
      if ends:
        self.stopped = True
        # Of stop strings that end together, the longest began first.
        hidden = 0 if self._include else max(ends)
        return self._show(before + i + 1 - hidden, keep=False)
    hold = max(m.matched for m in self._matchers)
    return self._show(len(self._held) - hold, keep=True)

  def _show(self, end: int, keep: bool) -> str:
    text = self._held[:end]
    self._held = self._held[end:] if keep else ''
    self.shown += len(text)
    return text
