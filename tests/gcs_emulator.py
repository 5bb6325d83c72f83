"""An emulator of Google Cloud Storage: gcp-storage-emulator, with the conditions on generations that it lacks.

python tests/gcs_emulator.py PORT BUCKET
"""

from __future__ import annotations

import http.server
import sys
import threading
from collections.abc import Callable
from http import HTTPStatus

from gcp_storage_emulator import server
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects

read = objects.download
LOCK = threading.Lock()


def generation(storage, bucket: str, name: str) -> str:
    """The generation of an object; '0' where there is none, as in the conditions of Google's interface."""
    try:
        return storage.get_file_obj(bucket, name)['generation']
    except NotFound:
        return '0'


def insert(request, response, storage, *args, **kwargs) -> None:
    """Write an object if its generation is the one that the request names, if it names one."""
    wanted, name = (request.query.get(key, [None])[0] for key in ('ifGenerationMatch', 'name'))
    name = name or (request.data['meta']['name'] if wanted else None)
    if wanted and wanted != generation(storage, request.params['bucket_name'], name):
        response.status = HTTPStatus.PRECONDITION_FAILED
        return
    objects.insert(request, response, storage, *args, **kwargs)


def download(request, response, storage, *args, **kwargs) -> None:
    """Read an object, with its generation in the head."""
    response['x-goog-generation'] = generation(storage, request.params['bucket_name'], request.params['object_id'])
    read(request, response, storage, *args, **kwargs)


def in_turn(call: Callable[..., None]) -> Callable[..., None]:
    """A handler that is called once at a time, when the client has sent all of its request."""

    def answer(request, response, storage, *args, **kwargs) -> None:
        _ = request.data
        with LOCK:
            call(request, response, storage, *args, **kwargs)

    return answer


if __name__ == '__main__':
    ours = {objects.insert: insert, read: download}
    # Other handlers call this one by its name.
    objects.download = download
    server.HANDLERS = tuple(
        (route, {method: in_turn(ours.get(call, call)) for method, call in calls.items()})
        for route, calls in server.HANDLERS
    )
    # A client keeps connections open, so each has a thread.
    http.server.HTTPServer = http.server.ThreadingHTTPServer
    server.create_server('localhost', int(sys.argv[1]), in_memory=True, default_bucket=sys.argv[2]).run()
