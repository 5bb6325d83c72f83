"""A bucket of an emulator of Google Cloud Storage, for tests of folders in a store."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

BUCKET = 'runs-bucket'
EMULATOR = Path(__file__).with_name('gcs_emulator.py')
# Nobody looks for Google's own machines, and no credentials are needed.
NOWHERE = {
    'GCE_METADATA_ROOT': 'localhost:9',
    'GCE_METADATA_HOST': 'localhost:9',
    'GCE_METADATA_IP': '127.0.0.1:9',
    'NO_GCE_CHECK': 'true',
    'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT': 'false',
}


@contextlib.contextmanager
def emulator() -> Iterator[dict[str, str]]:
    """The environment in which `gs://runs-bucket` is an empty bucket in memory, for as long as the block lasts."""
    with socket.socket() as free:
        free.bind(('localhost', 0))
        port = free.getsockname()[1]
    address = f'http://localhost:{port}'
    variables = {**NOWHERE, 'STORAGE_EMULATOR_HOST': address, 'TENSORSTORE_GCS_HTTP_URL': address}
    command = [sys.executable, EMULATOR, str(port), BUCKET]
    with mock.patch.dict(os.environ, variables), subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
        try:
            while server.poll() is None:
                with contextlib.suppress(OSError), socket.create_connection(('localhost', port)):
                    break
                time.sleep(0.05)
            yield variables
        finally:
            server.terminate()
