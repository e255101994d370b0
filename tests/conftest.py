"What several test files share."

import pytest
import torch
from hypothesis import settings

settings.register_profile(
    "same", derandomize=True, deadline=None
)  # one commit, one verdict, on a busy machine too
settings.register_profile(
    "default", deadline=None
)  # `pytest --hypothesis-profile=default` draws anew
settings.load_profile("same")


@pytest.fixture(scope="module")
def one_thread():
    "Small tensors are fastest on one thread, and sums then have one order."
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def same_numbers():
    "The same random numbers in every run, and none taken from other tests."
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
