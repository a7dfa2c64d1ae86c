import pytest
from chromium import Chromium
from sign_in_site import Site

pytest_plugins = ["cluster_fixtures"]  # tests/cluster/support/cluster_fixtures.py


@pytest.fixture(scope="session")
def chromium():
    with Chromium() as chromium:
        yield chromium


@pytest.fixture
def new_page(chromium):
    """A function that opens a page in a browser of its own, which has no cookies: new_page(java_script_enabled=False)."""
    yield chromium.new_page
    chromium.close_pages()


@pytest.fixture(scope="module")
def site(make_module_cluster):
    """The application on a server of the module's own, since its roles are of the whole server. Its clock stands still."""
    with Site(make_module_cluster()) as site:
        yield site
