"""Figures of the documentation: their numbers, and the names of their lines."""

import csv
import math
import pathlib
import runpy

import pytest

from gpt.reports import charts, plots
from launch.bench.recipes import short_names

ROOT = pathlib.Path(__file__).parents[2]


def test_every_point_of_the_speedrun_figure_stands_in_the_results():
  results = (ROOT / 'docs' / 'results.md').read_text()
  file = (ROOT / 'docs' / 'figures' / 'speedruns.csv').open()
  rows = list(csv.DictReader(file))
  file.close()
  assert len(rows) == 14
  for row in rows:
    loss = row['nats_per_char']
    if row['run'] == 'shakespeare_bpe':  # There in bits per byte.
      loss = f'{float(loss) / math.log(2):.4f}'
    found = [
      line
      for line in results.splitlines()
      if line.startswith('|') and row['seconds'] in line and loss in line
    ]
    assert found, row


def test_the_speedrun_figure_can_be_drawn(tmp_path):
  draw = runpy.run_path(str(ROOT / 'docs' / 'figures' / 'draw.py'))['draw']
  runs = {'speedrun_1min': [(52.0, 1.55)], "nanoGPT's": [(63.4, 1.9)]}
  plots.write_png(tmp_path / 'x.png', lambda axes: draw(axes, runs))
  assert (tmp_path / 'x.png').stat().st_size > 10_000


def test_short_names_hold_only_what_differs():
  same = 'data.path=shakespeare model.dtype=mixed'
  runs = [
    ('model_l', f'total_steps=150 {same}'),
    ('model_l', f'total_steps=150 {same} lr=1e-3'),
    ('model_l', f'total_steps=500 {same} lr=1e-3'),
    ('speedrun_1min', ''),
    ('xs', 'opt.name=muon'),
  ]
  assert short_names(runs) == [
    'model_l 150 steps',
    'model_l 150 steps, lr 1e-3',
    'model_l 500 steps, lr 1e-3',
    'speedrun_1min',
    'xs',
  ]


def test_names_at_the_ends_of_lines_do_not_overlap():
  figure = charts.load_matplotlib().figure.Figure(figsize=(8, 4))
  axes = figure.subplots()
  lines = [
    {'step': 1, 'elapsed_s': 1.0, 'val_loss': 3.0},
    {
      'elapsed_s': 50.0,
      'full_final_bits_per_byte': 2.0,
      'full_final_nats_per_token': 1.4,
    },
  ]
  runs = {f'run {i}': (60.0 + i, lines) for i in range(6)}
  plots.loss_by_time(axes, runs)
  figure.canvas.draw()
  boxes = [text.get_window_extent() for text in axes.texts]
  assert [text.get_text() for text in axes.texts] == [
    f'run {i}: 2.00' for i in range(6)
  ]
  for i, box in enumerate(boxes):
    assert not any(box.overlaps(other) for other in boxes[:i])


@pytest.mark.parametrize('train', [True, False])
def test_loss_curves_of_one_and_of_several_runs(train):
  lines = [
    {'step': i, 'loss': 4 - i / 50, 'val_loss': 4.1 - i / 50}
    for i in range(1, 100)
  ]
  for runs, count in (({'a': lines}, 3), ({'a': lines, 'b': lines}, 4)):
    axes = charts.load_matplotlib().figure.Figure().subplots()
    plots.loss_curves(axes, runs, train=train)
    shown = count if train else len(runs)
    assert len(axes.lines) == shown
    assert 'best 2.1200 at step 99' in str(
      [t.get_text() for t in axes.get_legend().get_texts()]
    )
