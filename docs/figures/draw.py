"""Draws speedruns.png from speedruns.csv: time against loss, on two CPU cores.

    python docs/figures/draw.py

The table holds every seed of docs/results.md. shakespeare_bpe is converted from
bits per byte: the text is ASCII, so a byte is a character.
"""

import collections
import csv
import pathlib
import statistics

from gpt.reports import plots
from gpt.reports.charts import COLORS

HERE = pathlib.Path(__file__).parent
# Published by others without a time on this machine: text, nats per character.
PUBLISHED = (
  ("RandyGPT's best (published, 4.8M parameters)", 2.3716),
  ("nanoGPT's GPU recipe (published, 10.7M parameters)", 1.4697),
)
TIMES = {30: '30 s', 60: '1 min', 120: '2 min', 300: '5 min', 600: '10 min'}
TIMES |= {1200: '20 min', 2400: '40 min'}
# Where the label stands, in points from the mean of the runs.
PLACES = {
  'speedrun_1min': (0, 11, 'center'),
  'shakespeare_bpe': (-10, -4, 'right'),
  'shakespeare_char': (0, 9, 'center'),
  'speedrun_10min': (0, -18, 'center'),
  'speedrun_1h': (0, -22, 'center'),
}


def main() -> None:
  runs = collections.defaultdict(list)
  with (HERE / 'speedruns.csv').open(encoding='utf-8') as file:
    for row in csv.DictReader(file):
      point = float(row['seconds']), float(row['nats_per_char'])
      runs[row['run']].append(point)
  plots.write_png(
    HERE / 'speedruns.png',
    lambda axes: draw(axes, runs),
    'Validation loss on tinyshakespeare by wall time, 2 CPU cores',
    size=(7.6, 4.2),
  )


def draw(axes, runs: dict[str, list[tuple[float, float]]]) -> None:
  """One point per seed, one label per recipe."""
  for text, loss in PUBLISHED:
    axes.axhline(loss, color=COLORS[5], linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate(
      f'{text}: {loss:.2f}',
      (2900, loss),
      xytext=(0, 4),
      textcoords='offset points',
      ha='right',
      fontsize=10,
      color=COLORS[5],
    )
  for name, points in runs.items():
    color = COLORS[1] if name.startswith('nanoGPT') else COLORS[0]
    axes.plot(*zip(*points), 'o', color=color, markersize=6, alpha=0.75)
    seconds, loss = (statistics.mean(values) for values in zip(*points))
    right, up, side = PLACES.get(name, (9, -4, 'left'))
    axes.annotate(
      f'{name}: {loss:.2f}',
      (seconds, loss),
      xytext=(right, up),
      textcoords='offset points',
      ha=side,
      fontsize=11,
      color=color,
    )
  axes.set_xscale('log')
  axes.set_xlim(30, 3000)
  axes.set_xticks(list(TIMES), list(TIMES.values()), fontsize=10)
  axes.set_xticks([], minor=True)
  axes.set_ylim(1.28, 2.48)
  axes.set_xlabel('from process start, compiling included')
  axes.set_ylabel('nats per character')
  axes.grid(axis='y', color='#e3e5e4')
  axes.set_axisbelow(True)


if __name__ == '__main__':
  main()
