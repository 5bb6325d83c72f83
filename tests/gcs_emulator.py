"""An emulator of Google Cloud Storage in a process of its own: gcp-storage-emulator, with the condition that it lacks.

python tests/gcs_emulator.py PORT BUCKET
"""

from __future__ import annotations

import sys
import threading
from http import HTTPStatus

from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects
from gcp_storage_emulator.server import create_server


def main(port: int, bucket: str) -> None:
    """Serve a bucket in memory until a signal ends the process."""
    insert, lock = objects.insert, threading.Lock()

    def checked(request, response, storage, *args, **kwargs):
        """An insert with `ifGenerationMatch=0` succeeds only where the object is not there."""
        with lock:
            name = request.query.get('name', [None])[0] or request.data['meta'].get('name')
            if request.query.get('ifGenerationMatch') == ['0']:
                try:
                    storage.get_file_obj(request.params['bucket_name'], name)
                except NotFound:
                    pass
                else:
                    response.status = HTTPStatus.PRECONDITION_FAILED
                    return
            insert(request, response, storage, *args, **kwargs)

    # The table of routes holds the functions themselves.
    from gcp_storage_emulator import server

    server.HANDLERS = tuple(
        (route, {method: checked if call is insert else call for method, call in calls.items()})
        for route, calls in server.HANDLERS
    )
    create_server('localhost', port, in_memory=True, default_bucket=bucket).run()


if __name__ == '__main__':
    main(int(sys.argv[1]), sys.argv[2])
