pytest_plugins = ["cluster_fixtures"]  # tests/cluster/support/cluster_fixtures.py
