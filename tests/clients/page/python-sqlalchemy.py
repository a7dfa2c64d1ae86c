import logging as log
import sys
from types import SimpleNamespace

from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError

engine = create_engine("postgresql+psycopg://")

# THE BLOCK

for line in sys.stdin:
    verb, key, *code = line.split()
    user = SimpleNamespace(id=int(key))
    print(enroll(user) if verb == "enroll" else second_factor(user, code[0] if code else None), flush=True)
