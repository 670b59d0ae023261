# SPDX-License-Identifier: Apache-2.0
"""What all pytest tests share. Run them as root through tests/run, or one: python3 -m pytest tests/kinds -k tree."""
import os
import pathlib
import shutil
import sys
import tempfile

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
sys.dont_write_bytecode = True

import hosts  # noqa: E402  (needs the path above)


def pytest_configure(config):
    if os.geteuid() != 0:
        raise pytest.UsageError("the tests make namespaces and dump processes: run them as root")
    if not (hosts.PROGRAMS / "nsinit").exists():
        raise pytest.UsageError(f"{hosts.PROGRAMS} has no test programs: run make first")


@pytest.fixture
def directory():
    """A directory whose path is short, open to every user, and the same in every host."""
    path = pathlib.Path(tempfile.mkdtemp(prefix="criu-test."))
    path.chmod(0o777)
    yield path
    if not os.environ.get("CRIU_TEST_KEEP"):
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def host():
    with hosts.Host() as one:
        yield one
