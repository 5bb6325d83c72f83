"""Makes the report of a run again, at any time, from the files of the run alone.

  pal-jax report runs/rlpa           or --workdir=runs/rlpa

The report is report.html in the run's folder, with learning_curve.png beside it. A run of stages has a report for each
finished stage, and report.html above them.
"""

from __future__ import annotations

import sys
from pathlib import Path

from pal_jax.run import stores
from pal_jax.run.files import at_home
from pal_jax.run.overview import write_front_page
from pal_jax.run.progress import print_anything
from pal_jax.run.report import write_report
from pal_jax.run.workdir import REPORT, read_run, stage_folders


def main() -> None:
    """Write the report of the run that the one argument names, and print its path."""
    print_anything()
    if sys.argv[1:] in (['-h'], ['--help']):
        print((__doc__ or '').strip())
        sys.exit(0)
    if len(sys.argv) != 2:
        print('error: give the folder of one run, as in pal-jax report runs/rlpa', file=sys.stderr)
        sys.exit(2)
    try:
        folder = Path(at_home(sys.argv[1].removeprefix('--workdir=')))
        if stages := stage_folders(folder):
            # A report says that a stage is finished, so one that is under way gets none.
            reports = [write_report(stage) for stage in stages if (stage / REPORT).exists()]
            reports.append(write_front_page(folder))
        else:
            # A folder that is no run is refused here.
            read_run(folder)
            reports = [write_report(folder)]
        stores.push_all()
        print(*map(stores.shown, reports), sep='\n')
    except (ValueError, RuntimeError) as fault:
        print(f'error: {stores.shown(fault)}', file=sys.stderr)
        sys.exit(2 if isinstance(fault, ValueError) else 1)


if __name__ == '__main__':
    main()
