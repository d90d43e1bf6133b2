"""The report page is self-contained, escaped, and true to the run."""

import html.parser
import json
import math
import re
import sys

import pytest

from configs import default, smoke
from gpt.errors import UserError
from gpt.reports import html as report
from gpt.reports import plots
from gpt.runs.config_file import plain, save_config
from gpt.tokenizers import CharTokenizer
from tests.support.workdirs import launch

HOSTILE = '<script>alert("x")</script> & \x00\x1b[31m </pre>'
VOID = {'meta', 'link', 'br', 'img', 'input', 'hr'}


@pytest.fixture
def workdir(tmp_path):
  """The files of a run, written by hand: 40 steps, an eval every 10."""
  config = smoke.get_config()
  config.total_steps = 40
  config.data.path = f'dir/{HOSTILE}'.replace('\x00', '')  # No path has one.
  save_config(tmp_path, config)
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
  description = HOSTILE.replace('\x00', '')
  record = {'kind': 'files', 'description': description, 'text_sha256': 'ab12'}
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


def test_the_page_is_one_file_without_scripts_or_links(workdir):
  text = report.report(workdir)
  page = Page(text)
  assert not page.links
  assert not {'script', 'link', 'img', 'iframe', 'object'} & set(page.tags)
  assert 'http' not in text and '@import' not in text and 'url(' in text
  assert set(re.findall(r'url\((.)', text)) == {'#'}
  assert page.tags.count('svg') == 5


def test_the_end_of_a_run_that_trained_on_is_not_in_the_tiles(workdir):
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
  shown = HOSTILE.replace('\x1b', '\ufffd')
  # As a sample, as the data's description, in the configuration as JSON.
  assert shown.replace('\x00', '\ufffd') in words
  assert shown.replace('\x00', '') in words
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


def test_only_keys_that_differ_from_the_defaults_are_marked(workdir):
  text = report.report(workdir, plain(default.get_config()))
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
  assert 'step 0 of 40, running or interrupted' in words
  assert 'no numbers yet' in words
  (workdir / 'metrics.jsonl').write_text('')
  assert 'no numbers yet' in report.report(workdir)


SCRIPT = '<script>alert(1)</script>'


def poisoned(value):
  """Copies of a JSON value, each with SCRIPT as one of its leaves or keys."""
  if isinstance(value, dict):
    for key, inner in value.items():
      for bad in poisoned(inner):
        yield value | {key: bad}
    yield value | {SCRIPT: 1, f'full_{SCRIPT}': 2}
  elif isinstance(value, list):
    for i, inner in enumerate(value):
      for bad in poisoned(inner):
        yield value[:i] + [bad] + value[i + 1 :]
  else:
    yield SCRIPT


@pytest.mark.parametrize('file', ['config.json', 'data.json', 'metrics.jsonl'])
def test_no_field_of_a_run_can_carry_a_script(workdir, file, monkeypatch):
  """Each page either escapes the script, or the damage is explained."""
  # Charts are drawn from numbers alone; the test of one page draws them.
  monkeypatch.setattr(report.charts, 'svg', lambda *a, **k: report.Markup(''))
  # The parameter count is of a GPTConfig, which takes no strings.
  (workdir / 'tokenizer').rename(workdir / 'elsewhere')
  path = workdir / file
  if file == 'metrics.jsonl':
    good = [json.loads(line) for line in path.read_text().splitlines()]
    cases = (
      [*good[:i], bad, *good[i + 1 :]]
      for i in (0, 1, 11, len(good) - 1)
      for bad in poisoned(good[i])
    )
  else:
    cases = poisoned(json.loads(path.read_text()))
  shown = refused = 0
  for case in cases:
    lines = case if isinstance(case, list) else [case]
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    try:
      page = report.report(workdir)
    except UserError as e:
      assert re.search('is damaged|has format_version|; allowed: ', str(e))
      refused += 1
      continue
    assert '<script' not in page.lower(), case
    shown += '&lt;script&gt;' in page
  assert shown > refused


def test_a_directory_without_a_run_is_explained(tmp_path, workdir):
  with pytest.raises(UserError, match='is not a run: it has no config.json'):
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
  assert 'is not a run' in err


def test_pages_of_equal_runs_are_equal(workdir):
  assert report.report(workdir) == report.report(workdir)


def test_a_figure_without_matplotlib_names_the_package(
  monkeypatch, tmp_path, workdir
):
  monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
  for make in (
    lambda: plots.loss_png(tmp_path / 'x.png', {}),
    lambda: report.report(workdir),
  ):
    with pytest.raises(UserError, match='pip install matplotlib') as e:
      make()
    assert '\n' not in str(e.value)
