"""The runs of launch.bench.law: around what pays in 5 seconds to 5 minutes."""

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Run:
  """A run: text, vocabulary (0: characters), shape, thousands of tokens."""

  text: str
  vocab: int
  width: int
  depth: int
  context: int
  kilotokens: int

  @property
  def name(self) -> str:
    values = dataclasses.astuple(self)
    return '-'.join(map(str, values))

  @property
  def bytes_per_token(self) -> float:
    """About what a vocabulary of this size gives; the table has it exactly."""
    return 1 + 0.317 * math.log2(self.vocab / 64) if self.vocab else 1.0


RUNS = (
  # Short texts, read again and again.
  Run('oasst1_400k', 0, 96, 4, 128, 3000),
  Run('sotu_500k', 0, 96, 4, 128, 4000),
  Run('stdlib_400k', 0, 64, 3, 128, 5000),
  Run('chitchat_400k', 0, 64, 3, 128, 4000),
  Run('kjv_400k', 0, 96, 4, 128, 3000),
  Run('names', 0, 96, 4, 128, 2500),
  Run('quran', 0, 64, 2, 128, 5000),
  Run('oasst1_400k', 0, 64, 2, 128, 6000),
  # Once, or hardly.
  Run('shakespeare', 0, 96, 4, 128, 600),
  Run('sotu', 0, 96, 4, 128, 600),
  Run('chitchat', 0, 96, 4, 128, 600),
  Run('stdlib', 0, 96, 4, 128, 600),
  Run('oasst1', 0, 96, 4, 128, 600),
  Run('plays', 0, 96, 4, 128, 600),
  Run('shakespeare_200k', 0, 96, 4, 128, 600),
  Run('sotu_500k', 0, 96, 4, 128, 600),
  Run('sotu', 1000, 96, 4, 128, 300),
  Run('shakespeare', 1000, 96, 4, 128, 300),
  Run('stdlib', 1000, 96, 4, 128, 300),
  Run('chitchat', 1000, 96, 4, 128, 300),
  Run('sotu', 0, 64, 2, 128, 900),
  Run('plays', 0, 64, 3, 128, 1800),
  Run('sotu_500k', 0, 64, 3, 128, 2400),
  Run('shakespeare', 0, 64, 2, 128, 300),
  Run('kjv_json', 0, 64, 2, 128, 400),
  Run('kjv', 0, 64, 2, 128, 400),
  Run('quran', 0, 64, 2, 128, 400),
  Run('names', 0, 64, 2, 128, 400),
  Run('sample', 0, 96, 4, 128, 400),
  Run('oasst1', 1000, 64, 3, 128, 400),
  Run('stdlib', 0, 64, 2, 128, 400),
  Run('chitchat', 0, 64, 2, 128, 400),
  Run('shakespeare_200k', 0, 64, 2, 128, 1800),
  Run('sotu', 1000, 64, 3, 128, 600),
  Run('stdlib', 1000, 64, 3, 128, 600),
  Run('shakespeare', 1000, 64, 3, 128, 600),
  Run('chitchat', 1000, 64, 3, 128, 600),
  Run('plays', 0, 64, 2, 128, 400),
  Run('oasst1', 0, 64, 2, 128, 400),
  Run('kjv_json', 0, 96, 4, 128, 600),
  Run('sample', 0, 64, 2, 128, 1200),
  Run('quran', 0, 96, 4, 128, 600),
  Run('shakespeare_200k', 0, 96, 4, 128, 1800),
  Run('kjv', 0, 96, 4, 128, 900),
  Run('shakespeare', 1000, 128, 4, 128, 600),
  Run('sotu', 1000, 128, 4, 128, 600),
  Run('names', 0, 64, 3, 128, 1200),
  Run('stdlib', 0, 96, 4, 128, 1500),
  Run('chitchat', 0, 128, 4, 128, 1000),
  Run('sotu', 0, 96, 4, 128, 1800),
  Run('plays', 0, 96, 4, 128, 1800),
  Run('shakespeare', 1000, 128, 4, 128, 1500),
  Run('oasst1', 1000, 96, 4, 128, 1200),
  Run('stdlib', 1000, 128, 6, 128, 2000),
  # Minutes, on texts that are hardly read once.
  Run('sotu', 2000, 128, 4, 128, 2500),
  Run('chitchat', 2000, 128, 4, 128, 2500),
  Run('stdlib', 2000, 128, 4, 128, 2500),
  Run('plays', 2000, 128, 4, 128, 2500),
  Run('kjv', 2000, 128, 4, 128, 2500),
)
