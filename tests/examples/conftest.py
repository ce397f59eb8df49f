"""What the tests of the examples share."""

import erc_tiny
import pytest


@pytest.fixture(scope="session")
def tokenizer():
    return erc_tiny.tokenizer()
