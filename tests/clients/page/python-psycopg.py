import logging as log
import sys
from types import SimpleNamespace

import psycopg
from psycopg_pool import ConnectionPool

pool = ConnectionPool("", min_size=1, max_size=1)

# THE BLOCK

for line in sys.stdin:
    verb, key, *code = line.split()
    user = SimpleNamespace(id=int(key))
    print(enroll(user) if verb == "enroll" else second_factor(user, code[0] if code else None), flush=True)
pool.close()
