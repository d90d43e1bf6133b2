"""Figures of runs and models with matplotlib.

Every function draws into axes it is given; `write_png` makes a file.
"""

import io
import math
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from gpt.errors import UserError
from gpt.files import write_atomic
from gpt.reports.charts import COLORS, GRID, load_matplotlib
from gpt.reports.series import Points, loss_range, smooth, thin
from gpt.runs.metrics import is_number

SOFTWARE = 'rgpt'
MARK = b'Software\0rgpt'  # Of a PNG that write_png made.

if TYPE_CHECKING:  # Importing matplotlib takes a second.
  from matplotlib.axes import Axes


def loss_curves(
  axes: 'Axes',
  runs: dict[str, list[dict]],
  *,
  train: bool = True,
  markers: bool = True,
) -> None:
  """Loss by step: validation with points, training pale.

  A single run also shows its training loss as it is, paler still.

  Args:
    runs: {name: lines of metrics.jsonl}.
    train: draw training losses too.
    markers: mark each validation.
  """
  ranges, several = [], len(runs) > 1
  for i, (name, lines) in enumerate(runs.items()):
    color = COLORS[i % len(COLORS)]
    val = _points(lines, 'val_loss')
    raw = _points(lines, 'loss') if train else []
    loss = smooth(raw)
    if raw and not several:
      line(axes, raw, color=color, linewidth=0.8, alpha=0.28)
    if raw:
      label = {} if several else {'label': 'training (smoothed)'}
      alpha = 0.45 if several else 1.0
      line(axes, loss, color=color, linewidth=1.6, alpha=alpha, **label)
    if val:
      best = min((y, x) for x, y in val if is_number(y))
      label = name if several else 'validation'
      line(
        axes,
        val,
        color=color if several else COLORS[1],
        marker='o' if markers else '',
        markersize=3.5,
        linewidth=1.8,
        label=f'{label} (best {best[0]:.4f} at step {best[1]:,})',
      )
    ranges.append(loss_range(loss, val))
  _step_axis(axes)
  axes.set_ylabel('loss in nats/token')
  if all(ranges):
    lows, highs = zip(*ranges)
    axes.set_ylim(min(lows), max(highs))
  if axes.get_legend_handles_labels()[0]:
    axes.legend(frameon=False)


def curve(
  axes: 'Axes', runs: dict[str, list[dict]], key: str, label: str = ''
) -> None:
  """One value of metrics.jsonl by step, a line for each run."""
  for i, (name, lines) in enumerate(runs.items()):
    points = _points(lines, key)
    if points:
      color = COLORS[i % len(COLORS)]
      line(axes, points, color=color, label=name, linewidth=1.6)
  _step_axis(axes)
  axes.set_ylabel(label or key)


def line(axes: 'Axes', points: Points, **style: Any) -> None:
  """A line through points; values that are no numbers interrupt it."""
  points = [(x, y if is_number(y) else math.nan) for x, y in thin(points)]
  axes.plot(*zip(*points), **style)


def _step_axis(axes: 'Axes') -> None:
  axes.set_xlabel('step')
  axes.locator_params(axis='x', integer=True)
  axes.grid(color=GRID)


def _points(lines: list[dict], key: str) -> list:
  """(step, value), with gaps; [] if no value is a number."""
  points = [(x['step'], x[key]) for x in lines if key in x]
  return points if any(is_number(y) for _, y in points) else []


def loss_by_time(
  axes: 'Axes', runs: dict[str, tuple[float, list[dict]]]
) -> None:
  """Validation loss by wall time, logarithmic, each line named at its end.

  In bits per byte, so that tokenizers compare: nats per token times the ratio
  of the two in the run's full pass.

  Args:
    runs: {name: (wall seconds in all, lines of metrics.jsonl)} of runs that
      ended with a full pass. Time outside the run's own clock (start, end)
      comes before its first point.
  """
  starts, ends = [], []
  for i, (name, (wall_s, lines)) in enumerate(runs.items()):
    lines = [x for x in lines if x.get('elapsed_s') is not None]
    outside = wall_s - lines[-1]['elapsed_s']
    full = lines[-1]['full_final_bits_per_byte']
    bits = full / lines[-1]['full_final_nats_per_token']
    points = [
      (outside + x['elapsed_s'], x['val_loss'] * bits)
      for x in lines
      if x.get('val_loss') is not None
    ]
    points.append((wall_s, full))
    starts.append(points[0][0])
    color = COLORS[i % len(COLORS)]
    style = '-' if i < len(COLORS) else '--'
    axes.plot(*zip(*points), color=color, linewidth=1.8, linestyle=style)
    axes.plot(wall_s, full, 'o', color=color, markersize=5)
    ends.append((wall_s, full, f'{name}: {full:.2f}', color))
  axes.set_xscale('log')
  axes.set_xlabel('seconds from process start, compiling included')
  axes.set_ylabel('validation loss in bits/byte')
  axes.set_ylim(top=min(4.3, axes.get_ylim()[1]))
  axes.grid(color=GRID)
  # Room for the names.
  axes.set_xlim(0.9 * min(starts), 6 * max(x for x, *_ in ends))
  label_ends(axes, ends)


def label_ends(axes: 'Axes', ends: list[tuple[float, float, str, str]]) -> None:
  """Names lines at their ends; names that would overlap move up.

  Args:
    ends: (x, y, name, colour) of each line's last point.
  """
  taken = []  # (left, right, height) of the names so far, in points.
  to_points = 72 / axes.figure.dpi
  for x, y, name, color in sorted(ends, key=lambda end: end[1]):
    left, at = axes.transData.transform((x, y)) * to_points
    right, height = left + 6.5 * len(name), at
    for other_left, other_right, other in taken:
      if left < other_right and other_left < right:
        height = max(height, other + 13)
    taken.append((left, right, height))
    axes.annotate(
      name,
      (x, y),
      xytext=(7, height - at - 3),
      textcoords='offset points',
      fontsize=10,
      color=color,
    )


def loss_png(
  path: str | pathlib.Path,
  runs: dict[str, list[dict]],
  title: str = '',
  dpi: int = 140,
) -> None:
  """Writes the loss curves of runs as an image.

  Raises:
    UserError: no matplotlib; a path that cannot be written.
  """
  write_png(path, lambda axes: loss_curves(axes, runs), title, dpi)


def write_png(
  path: str | pathlib.Path,
  draw: Callable,
  title: str = '',
  dpi: int = 140,
  size: tuple[float, float] = (8, 4.2),
) -> None:
  """Writes what draw(axes) draws as an image.

  Args:
    size: width and height in inches.

  Raises:
    UserError: no matplotlib; a path that cannot be written.
  """
  matplotlib = load_matplotlib()
  figure = matplotlib.figure.Figure(figsize=size, layout='constrained')
  axes = figure.subplots()
  draw(axes)
  axes.set_title(title, fontsize=11)
  axes.spines[['top', 'right']].set_visible(False)
  format = pathlib.Path(path).suffix[1:] or 'png'
  metadata = {'Software': SOFTWARE} if format == 'png' else None
  written = io.BytesIO()
  try:
    figure.savefig(written, dpi=dpi, format=format, metadata=metadata)
    write_atomic(path, written.getvalue())
  except (OSError, ValueError) as e:
    raise UserError(f'cannot write {path}: {e}') from e


def attention_map(
  axes: 'Axes', probs_LS: ArrayLike, tokens: Iterable[str] = (), title: str = ''
) -> None:
  """One head: row l shows where position l looks (square roots).

  Args:
    probs_LS: float[L, L] of gpt.decoding.inspect.attention_probs.
    tokens: L strings to write beside the map, or none.
  """
  axes.imshow(np.sqrt(probs_LS), cmap='magma', vmin=0, vmax=1)
  axes.set_title(title, fontsize=9)
  names = [visible(t) for t in tokens]
  places = range(len(names))
  axes.set_xticks(places, names, rotation=90, fontsize=8, family='monospace')
  axes.set_yticks(places, names, fontsize=8, family='monospace')
  axes.tick_params(length=0)


def visible(token: str) -> str:
  """The token with visible spaces."""
  return token.replace(' ', '\u2423')


def token_bars(
  axes: 'Axes', tokens: Sequence[tuple[str, float]], title: str = ''
) -> None:
  """The likeliest next tokens as (text, probability), the first on top."""
  names, probs = zip(*tokens)
  places = np.arange(len(names))[::-1]
  axes.barh(places, probs, color=COLORS[0], height=0.72)
  axes.set_yticks(places, [f"'{n}'" for n in names], family='monospace')
  for place, p in zip(places, probs):
    axes.text(p + 0.012, place, f'{p:.2f}', va='center', fontsize=8)
  axes.set_xlim(0, 1.12)
  axes.set_title(title, fontsize=9)
  axes.spines[['top', 'right']].set_visible(False)


def surprise_strip(
  axes: 'Axes', tokens: Sequence[str], nats: np.ndarray, columns: int = 64
) -> None:
  """A text whose tokens are the darker, the less the model expected them.

  Args:
    tokens: the text of each token.
    nats: float[L]: -log p of each token.
    columns: tokens per row.
  """
  rows = -(-len(tokens) // columns)
  grid = np.full((rows, columns), np.nan)
  grid.flat[: len(tokens)] = nats
  image = axes.imshow(
    grid, cmap='YlOrRd', vmin=0, vmax=max(6, np.max(nats)), aspect='auto'
  )
  for i, token in enumerate(tokens):
    dark = nats[i] > 0.6 * max(6, np.max(nats))
    axes.text(
      i % columns,
      i // columns,
      visible(token),
      ha='center',
      va='center',
      fontsize=8,
      family='monospace',
      color='white' if dark else 'black',
    )
  axes.set_axis_off()
  axes.figure.colorbar(image, ax=axes, label='nats', fraction=0.02, pad=0.01)


def embedding_plane(
  axes: 'Axes',
  plane_N2: np.ndarray,
  labels: Sequence[str],
  share: Sequence[float] | None = None,
) -> None:
  """Tokens at their embeddings, in the two directions of largest variance."""
  axes.scatter(*np.asarray(plane_N2).T, s=0)  # Sets the limits.
  for (x, y), label in zip(plane_N2, labels):
    axes.text(
      x,
      y,
      visible(label),
      fontsize=10,
      color=group_color(label),
      family='monospace',
      ha='center',
      va='center',
    )
  if share is not None:
    axes.set_xlabel(f'first direction ({share[0]:.0%} of the variance)')
    axes.set_ylabel(f'second direction ({share[1]:.0%})')
  axes.spines[['top', 'right']].set_visible(False)


def group_color(token: str) -> str:
  """A colour by kind: vowels, other letters, capitals, digits, the rest."""
  text = token.strip() or token
  if text.isdigit():
    return COLORS[3]
  if text.lower() in set('aeiou'):
    return COLORS[1]
  if text.isalpha():
    return COLORS[0] if text[0].islower() else COLORS[2]
  return COLORS[5]
