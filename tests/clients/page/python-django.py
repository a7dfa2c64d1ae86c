import logging as log
import os
import sys
from types import SimpleNamespace

import django
from django.conf import settings

settings.configure(DATABASES={"default": {"ENGINE": "django.db.backends.postgresql", "NAME": os.environ["PGDATABASE"], "USER": os.environ["PGUSER"]}})
django.setup()

from django.db import Error, connection, transaction  # noqa: E402

# THE BLOCK

for line in sys.stdin:
    verb, key, *code = line.split()
    user = SimpleNamespace(pk=int(key))
    if verb == "atomic":  # as with ATOMIC_REQUESTS
        try:
            with transaction.atomic():
                answer = enroll(user)
        except RuntimeError:
            answer = "RuntimeError"
        print(answer, flush=True)
    else:
        print(enroll(user) if verb == "enroll" else second_factor(user, code[0] if code else None), flush=True)
