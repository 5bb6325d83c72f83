"""Shows the report of a run that is under way in a browser, made anew from the run's files at every look.

  pal-jax watch runs/rlpa                       http://127.0.0.1:8500
  pal-jax watch runs/safe_rlhf --port=8501      all stages, each with its report

The page loads itself again every --every seconds (30). It is served to this machine alone; from another one
ssh -L 8500:127.0.0.1:8500 brings it there. Nothing is written, and the run does not notice.
"""

from __future__ import annotations

import argparse
import contextlib
import html
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from starlette.middleware.trustedhost import TrustedHostMiddleware

from pal_jax.decode.serve.listening import listen
from pal_jax.run import stores
from pal_jax.run.files import arguments_at_home
from pal_jax.run.interrupts import until_closed
from pal_jax.run.overview import front_page
from pal_jax.run.report import make_report
from pal_jax.run.workdir import CONFIG, read_run, stage_folders

LOCAL = '127.0.0.1'


def make_app(workdir: Path, every: int) -> FastAPI:
    """The pages of the run in a folder, which load themselves again every so many seconds."""
    app = FastAPI(openapi_url=None)
    # A page of another site that gives itself this address is not answered.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[LOCAL, 'localhost'])

    def shown(folder: Path) -> HTMLResponse:
        try:
            stores.pull(workdir)
            page = front_page(folder, live=True) if stage_folders(folder) else make_report(folder)[0]
        except (ValueError, RuntimeError) as error:
            page = f'<!doctype html><p>Nothing to show yet: {html.escape(stores.shown(error))}'
        return HTMLResponse(page, headers={'Refresh': str(every), 'Cache-Control': 'no-store'})

    @app.get('/')
    def run() -> HTMLResponse:
        return shown(workdir)

    @app.get('/{stage}/report.html')
    def of_stage(stage: str) -> HTMLResponse:
        # Only folders of stages are shown, whatever the path names.
        known = {folder.name: folder for folder in stage_folders(workdir)}
        return shown(known[stage]) if stage in known else HTMLResponse('no such stage', 404)

    return app


def main() -> None:
    """Serve the pages until a signal ends the command."""
    parser = argparse.ArgumentParser(
        prog='pal-jax watch', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('run', type=Path, help='the folder of a run, or of all its stages')
    parser.add_argument('--port', type=int, default=8500, help='the port on 127.0.0.1; 0 is any free one')
    parser.add_argument('--every', type=int, default=30, help='seconds between two looks')
    arguments = arguments_at_home(parser)
    if arguments.every < 1 or not 0 <= arguments.port < 65536:
        parser.error(f'--every={arguments.every} must be at least 1, and --port={arguments.port} a port')
    try:
        # A folder that is no run is refused here; one whose run is yet to begin its first step is shown.
        if not stage_folders(arguments.run):
            read_run(arguments.run)
        listener, _ = listen(LOCAL, arguments.port)
    except (ValueError, OSError) as error:
        begun = isinstance(error, OSError) or (arguments.run / CONFIG).is_file()
        parser.error(stores.shown(error) + ('' if begun else '; a run that has just been started has none for a while'))
    with contextlib.closing(listener):
        print(f'http://{LOCAL}:{listener.getsockname()[1]} (Ctrl-C ends it)', flush=True)
        config = uvicorn.Config(make_app(arguments.run, arguments.every), log_level='warning')
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == '__main__':
    with until_closed():
        main()
