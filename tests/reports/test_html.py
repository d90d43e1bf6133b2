"""The report page: whole, self-contained, and true to what the run wrote."""

import html.parser
import json
import math
import re
import xml.etree.ElementTree as ElementTree

import pytest

from configs import default, smoke
from gpt.errors import UserError
from gpt.reports import html as report
from gpt.reports import plots, svg_chart
from gpt.reports.svg_chart import Series, line_chart, nice_ticks, number, smooth
from gpt.runs import workdir as run
from gpt.tokenizers import CharTokenizer
from tests.support.workdirs import launch

HOSTILE = '<script>alert("x")</script> & \x00\x1b[31m </pre>'
VOID = {'meta', 'link', 'br', 'img', 'input', 'hr'}


@pytest.fixture
def workdir(tmp_path):
  """What training leaves, written by hand: 40 steps, an eval every 10."""
  config = smoke.get_config()
  config.total_steps = 40
  config.data.path = f'dir/{HOSTILE}'
  run.save_config(tmp_path, config)
  CharTokenizer('abc').save(tmp_path / 'tokenizer')
  lines = [
    {'step': 0, 'val_loss': 4.0, 'val_ppl': 54.6, 'val_bits_per_byte': 5.77}
  ]
  for step in range(1, 41):
    loss = 1 + 3 * math.exp(-step / 10)
    lines.append({'step': step, 'loss': loss, 'lr': 1e-3, 'grad_norm': 0.5})
    if step % 10 == 0:
      lines.append(
        {
          'step': step,
          'val_loss': loss + 0.25,
          'val_ppl': 3.0,
          'val_bits_per_byte': 1.5,
          'train_loss': loss,
          'ms_per_step': 12.5,
          'tokens_per_s': 20480.0,
          'elapsed_s': 61.0 + step,
          'best_val_loss': loss + 0.25,
          'patience': 0,
        }
      )
  lines.append(
    {
      'step': 40,
      'outcome': 'finished',
      'full_final_nats_per_token': 1.2345,
      'full_final_bits_per_byte': 1.781,
      'elapsed_s': 101.0,
    }
  )
  text = ''.join(json.dumps(line) + '\n' for line in lines)
  (tmp_path / 'metrics.jsonl').write_text(text)
  (tmp_path / 'samples.txt').write_text(
    f'--- step 20\nearly text\n--- step 40\n{HOSTILE}\nlate text\n',
    newline='',
  )
  record = {'kind': 'files', 'description': HOSTILE, 'text_sha256': 'ab12'}
  (tmp_path / 'data.json').write_text(json.dumps(record))
  return tmp_path


class Page(html.parser.HTMLParser):
  """Checks that tags are closed in order; collects tags, links and text."""

  def __init__(self, page):
    super().__init__()
    self.open, self.tags, self.links, self.words = [], [], [], []
    self.feed(page)
    self.close()
    assert not self.open, f'never closed: {self.open}'

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.links += [v for k, v in attrs if k in ('src', 'href', 'action')]
    if tag not in VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.tags.append(tag)

  def handle_endtag(self, tag):
    assert self.open and self.open.pop() == tag, tag

  def handle_data(self, data):
    self.words.append(data)


def test_the_page_is_whole_and_needs_no_network(workdir):
  text = report.report(workdir)
  page = Page(text)
  assert not page.links
  assert not {'script', 'link', 'img', 'iframe', 'object'} & set(page.tags)
  assert 'http' not in text and '@import' not in text and 'url(' in text
  assert set(re.findall(r'url\((.)', text)) == {'#'}
  assert page.tags.count('svg') == 5


def test_an_end_that_a_run_has_gone_beyond_counts_no_more(workdir):
  text = report.report(workdir)
  assert 'full pass, final weights' in text and '1.2345' in text
  with (workdir / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 41, "loss": 1.0}\n')
  text = report.report(workdir)
  assert 'full pass, final weights' not in text
  assert 'step 40: final nats per token' in text  # In the table of all.


def test_text_from_outside_is_escaped(workdir):
  page = Page(report.report(workdir))
  words = ''.join(page.words)
  shown = HOSTILE.replace('\x00', '\ufffd').replace('\x1b', '\ufffd')
  # As a sample, as the data's description, in the configuration as JSON.
  assert words.count(shown) >= 2
  assert '</pre>' in words and 'script' not in page.tags


def test_numbers_are_those_of_the_run(workdir):
  words = ' '.join(Page(report.report(workdir)).words)
  best = 1 + 3 * math.exp(-4) + 0.25
  for text in (
    f'{best:.4f}',
    'nats/token at step 40',
    '1.2345',
    '1.7810 bits/byte',
    '20.5K',
    '12.5 ms/step',
    '1:41',
    '5 evaluations',
    'step 40 of 40, finished',
    'early text',
    'late text',
    'ab12',
  ):
    assert text in words, text
  assert f'step 40, validation loss {best:.4f}' in words


def test_only_what_differs_from_the_defaults_stands_out(workdir):
  text = report.report(workdir, run.plain(default.get_config()))
  table = text[text.index('keys differ') : text.index('<summary>all')]
  keys = re.findall(r'<tr class="changed"><td><code>([^<]+)', table)
  assert 'total_steps' in keys and 'model.n_embd' in keys
  assert 'model.arch' not in keys and 'seed' not in keys
  assert '<code>32</code></td><td class="was"><code>256</code>' in table


def test_a_run_that_has_just_begun(workdir):
  (workdir / 'samples.txt').unlink()
  (workdir / 'data.json').unlink()
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  (workdir / 'metrics.jsonl').write_text(lines[0] + '\n{"step": 1, "lo')
  page = Page(report.report(workdir))
  words = ' '.join(page.words)
  assert 'step 0 of 40, under way' in words
  assert 'no numbers yet' in words
  (workdir / 'metrics.jsonl').write_text('')
  assert 'no numbers yet' in report.report(workdir)


def test_numbers_that_are_none_interrupt_a_curve():
  points = [(1, 2.0), (2, None), (3, math.nan), (4, 1.0), (5, 0.5)]
  svg = line_chart([Series('a', points)], label='x')
  path = re.search(r'class="line"[^>]* d="([^"]+)"', svg)[1]
  assert path.count('M') == 2 and path.count('L') == 1
  ElementTree.fromstring(svg)  # Well-formed XML.


def test_points_lie_where_their_numbers_are():
  """Two points at known places of known axes."""
  svg = line_chart(
    [Series('a', [(0, 1.0), (10, 3.0)], style='dots')],
    label='x',
    y_range=(1.0, 3.0),
    width=400,
    height=200,
  )
  found = [
    (float(x), float(y))
    for x, y in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', svg)
  ]
  margin = svg_chart.MARGIN
  assert found == [
    (margin['left'], 200 - margin['bottom']),
    (400 - margin['right'], margin['top']),
  ]


def test_long_series_keep_their_extremes():
  points = [(i, math.sin(i)) for i in range(100_000)]
  points[54_321] = (54_321, 99.0)
  svg = line_chart([Series('', points)], label='x', height=200)
  assert len(svg) < 60_000
  ys = [float(y) for y in re.findall(r'L[\d.]+ ([\d.]+)', svg)]
  assert min(ys) == pytest.approx(svg_chart.MARGIN['top'] + 0.0455 * 146, abs=1)


def test_constant_and_empty_series():
  assert '<path' in line_chart([Series('a', [(3, 2.0)])], label='x')
  assert '<path' in line_chart([Series('a', [(1, 0.0), (2, 0.0)])], label='x')
  assert 'no numbers' in line_chart([Series('a', [(1, None)])], label='x')
  assert 'no numbers' in line_chart(
    [Series('a', [(1, -1.0)])], label='x', log_y=True
  )


@pytest.mark.parametrize(
  'low, high, ticks',
  [
    (0, 10, [0, 2, 4, 6, 8, 10]),
    (1.31, 1.59, [1.35, 1.4, 1.45, 1.5, 1.55]),
    (0, 2200, [0, 500, 1000, 1500, 2000]),
    (-1, 1, [-1, -0.5, 0, 0.5, 1]),
  ],
)
def test_ticks_are_round(low, high, ticks):
  assert nice_ticks(low, high, 6) == pytest.approx(ticks)


def test_numbers_are_short():
  assert [number(x) for x in (0, 3e-4, 1.25, 1200, 20480, 2.5e6)] == [
    '0',
    '3e-4',
    '1.25',
    '1200',
    '20.48k',
    '2.5M',
  ]


def test_smoothing_starts_at_the_first_value():
  assert smooth([(1, 4.0), (2, 4.0)], 0.9) == [(1, 4.0), (2, 4.0)]
  ((_, y),) = smooth([(1, 4.0), (2, 2.0)], 0.5)[1:]
  assert y == pytest.approx((0.25 * 4 + 0.5 * 2) / 0.75)


def test_what_is_no_run_is_explained(tmp_path, workdir):
  with pytest.raises(UserError, match='is no run: it has no config.json'):
    report.report(tmp_path / 'nothing')
  (workdir / 'metrics.jsonl').unlink()
  with pytest.raises(UserError, match='nothing has been trained there yet'):
    report.report(workdir)


def test_the_command_writes_page_and_picture(workdir, tmp_path):
  png = tmp_path / 'loss.png'
  said, _ = launch('report', f'--workdir={workdir}', f'--png={png}')
  assert 'report.html' in said and 'loss.png' in said
  assert Page((workdir / 'report.html').read_text()).tags.count('svg') == 5
  assert png.read_bytes().startswith(b'\x89PNG') and png.stat().st_size > 10_000
  _, err = launch('report', f'--workdir={tmp_path / "none"}', code=2)
  assert 'is no run' in err


def test_a_picture_without_matplotlib_names_the_extra(monkeypatch, tmp_path):
  monkeypatch.setitem(__import__('sys').modules, 'matplotlib.figure', None)
  with pytest.raises(UserError, match=r"pip install 'rgpt\[plots\]'"):
    plots.loss_png(tmp_path / 'x.png', {})
