# SPDX-License-Identifier: Apache-2.0
"""Two hosts with a cable between them, and a small program on the first."""
import pytest

import moving
from program import Program

import hosts


@pytest.fixture
def pair():
    with moving.pair() as pair:
        yield pair


@pytest.fixture
def program(pair, directory):
    running = Program(pair.hosts[0], directory, hosts.PROGRAMS / "eventfd")
    yield running
    running.close()
