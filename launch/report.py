"""A run as one page to look at: curves, numbers, samples, configuration.

    python -m launch.report --workdir=runs/l
    python -m launch.report --workdir=runs/l --png=loss.png

The page (report.html in the workdir, unless --output says otherwise) is one
file and needs no network. It can be made while the run is going.
"""

import pathlib

from absl import flags

from gpt.errors import UserError
from launch import cli, config_flag

WORKDIR = flags.DEFINE_string('workdir', None, 'Directory of the run.')
OUTPUT = flags.DEFINE_string(
  'output', '', 'HTML file to write. Default: report.html in the workdir.'
)
PNG = flags.DEFINE_string(
  'png', '', 'Write the loss curves as this image too (extra: plots).'
)


def main(_):
  if not WORKDIR.value:
    raise UserError('--workdir=DIRECTORY of a run is needed')
  from gpt.files import write_atomic
  from gpt.reports import html
  from gpt.runs import workdir  # JAX, after the flags are right.

  defaults = workdir.plain(config_flag.load_config('configs/default.py'))
  page = html.report(WORKDIR.value, defaults)
  output = OUTPUT.value or pathlib.Path(WORKDIR.value) / 'report.html'
  try:
    write_atomic(output, page.encode('utf-8', 'replace'))
  except OSError as e:
    raise UserError(f'cannot write {output}: {e.strerror or e}') from e
  print(f'wrote {output} ({len(page):,} characters)')
  if PNG.value:
    from gpt.reports import plots
    from gpt.runs.record import read_run

    name = pathlib.Path(WORKDIR.value).resolve().name
    lines = read_run(WORKDIR.value).lines
    plots.loss_png(PNG.value, {name: lines}, title=name)
    print(f'wrote {PNG.value}')


if __name__ == '__main__':
  cli.run(main)
