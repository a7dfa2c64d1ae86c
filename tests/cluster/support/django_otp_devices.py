"""Has django-otp make its tables and devices: tests/cluster/enrollment/test_migrating.py.

Makes the tables in the database that PGHOST and PGDATABASE name. Reads JSON, a list of fields of TOTPDevice with a username; without a
key, django-otp makes it. Prints JSON, a list of the devices' user_id, id and key.
"""

import json
import os
import sys

import django
from django.conf import settings
from django.core.management import call_command

settings.configure(
    USE_TZ=True, DEFAULT_AUTO_FIELD="django.db.models.AutoField",
    DATABASES={"default": {"ENGINE": "django.db.backends.postgresql", "NAME": os.environ["PGDATABASE"], "USER": os.environ["PGUSER"]}},
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "django_otp", "django_otp.plugins.otp_totp"])
django.setup()
call_command("migrate", verbosity=0)

from django.contrib.auth.models import User  # noqa: E402, after setup()
from django_otp.plugins.otp_totp.models import TOTPDevice  # noqa: E402

made = []
for fields in json.load(sys.stdin):
    user, _ = User.objects.get_or_create(username=fields.pop("username"))
    device = TOTPDevice.objects.create(user=user, **fields)
    made.append({"user_id": str(user.id), "id": device.id, "key": device.key})
json.dump(made, sys.stdout)
