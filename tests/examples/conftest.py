"""What the tests of the examples share."""

import pytest

import erc_tiny


@pytest.fixture(scope="session")
def tokenizer():
    return erc_tiny.tokenizer()
