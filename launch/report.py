"""Write an HTML page about a run: curves, numbers, samples.

    python -m launch.report --workdir=runs/l
    python -m launch.report --workdir=runs/l --png=loss.png

The page is one file (report.html in the workdir, or --output) and needs no
network. A run that is still training can be reported on too.
"""

import os
import pathlib

from absl import flags

from gpt.errors import explained_writes
from launch import cli, common_flags, config_flag

WORKDIR = common_flags.workdir('Directory of the run.')
OUTPUT = flags.DEFINE_string(
  'output', '', 'HTML file to write. Default: report.html in the workdir.'
)
OVERWRITE = flags.DEFINE_bool(
  'overwrite', False, 'Replace existing files that are no earlier reports.'
)
PNG = flags.DEFINE_string(
  'png', '', 'Also write the loss curves as this image.'
)


def main(_: list[str]) -> None:
  directory = common_flags.need_workdir(WORKDIR)
  from gpt.files import write_atomic
  from gpt.reports import html, plots
  from gpt.runs import config_file  # JAX, after the flags are right.
  from gpt.runs.output import check_file

  defaults = config_file.plain(config_flag.load_config('configs/default.py'))
  output = OUTPUT.value or pathlib.Path(directory) / 'report.html'
  overwrite = OVERWRITE.value
  if OUTPUT.value or os.path.islink(output):
    check_file(output, '--output', overwrite, html.MARK.encode())
  if PNG.value:
    check_file(PNG.value, '--png', overwrite, plots.MARK)
  page = html.report(directory, defaults)
  with explained_writes(output):
    write_atomic(output, page.encode('utf-8', 'replace'))
  print(f'wrote {output} ({len(page):,} characters)')
  if PNG.value:
    from gpt.runs.record import read_run

    name = pathlib.Path(directory).resolve().name
    lines = read_run(directory).lines
    plots.loss_png(PNG.value, {name: lines}, title=name)
    print(f'wrote {PNG.value}')


if __name__ == '__main__':
  cli.run(main)
