"""What totp_health() says, word for word: of a healthy database, of each fault, and of one and of two of each thing that it counts."""

import pytest
from health import health
from totp import SECRET, import_secret, recovery_codes

HEALTHY = {
    "master_key": "1 loaded; nothing to do",
    "master_key_source": "from the file that totp.key_file names; nothing to do",
    "test_clock": "totp.clock is not set; nothing to do",
    "require_proof": "totp.require_proof is on; nothing to do",
    "issuer": "totp.issuer is valid wherever it is set; nothing to do",
    "write_all_data": "no role is in pg_write_all_data; nothing to do",
    "other_routines": "no other routine has a name of pg_totp; nothing to do",
    "function_schema": "only superusers own the schemas of pg_totp and can create in them; nothing to do",
    "owner_functions": "nobody else may execute the owner's functions; nothing to do",
    "maintain": "nobody else has MAINTAIN on tables that change in place; nothing to do",
    "initial_privileges": "no privilege on the extension's objects is of a role that is gone; nothing to do",
    "version": "{version}; nothing to do",
    "table_attempts": "changes in place as it should; nothing to do",
    "table_counters": "changes in place as it should; nothing to do",
    "table_floor": "changes in place as it should; nothing to do",
    "table_used_codes": "changes in place as it should; nothing to do",
    "wal_consistency_checking": "off for generic WAL; nothing to do",
    "log_parameters": "the server log shows no parameters; nothing to do",
    "rights": "PUBLIC has no rights; nothing to do",
    "lost_master_key": "every data key can be opened; nothing to do",
    "key_rotation": "no data key is older than a year; nothing to do",
    "clock": "the clock is not behind the time when this cluster first judged a code; nothing to do",
    "recovery_after_restore": "no failover or restore with recovery codes is to be acknowledged; nothing to do",
    "failures_over_many_users": "0 users had a wrong code in the last hour, and 0 secrets were used: nothing to do",
    "replays": "0 used codes were tried again in the last hour, in transactions that committed: nothing to do",
}
HEALTHY_IN_FULL = HEALTHY | {
    "rows": "every secret has its rows; nothing to do",
    "data_keys": "every secret has its data key; nothing to do",
    "future_times": "the clock is not behind any time seen before; nothing to do",
    "old_recovery_codes": "0 sets of recovery codes are older than the last failover or restore: nothing to do",
    "locked_users": "0 users are locked, 0 of them until totp_unlock(), and 0 are one wrong code away: nothing to do",
    "unconfirmed_devices": "0 devices were enrolled and never confirmed, and their secrets have expired: nothing to do",
    "recovery_codes_low": "0 users have two or fewer recovery codes left: nothing to do",
    "recovery_codes_alone": "0 users have recovery codes and no device: nothing to do",
}


@pytest.mark.parametrize("full", [False, True])
def test_the_words_about_a_healthy_database(conn, full):
    """In this order, too. The last column tells the checks that read everything."""
    [[version]] = conn.execute("SELECT extversion FROM pg_extension WHERE extname = 'pg_totp'")
    conn.execute("RESET totp.clock; SET log_parameter_max_length_on_error = 0")
    found = conn.execute("SELECT * FROM totp_health(full => %s)", [full]).fetchall()
    assert found == [(name, "ok", detail.format(version=version), name not in HEALTHY) for name, detail in (HEALTHY_IN_FULL if full else HEALTHY).items()]


@pytest.fixture
def two(conn):
    """The session, with alice and bob, in a transaction that is rolled back."""
    with conn.transaction(force_rollback=True):
        conn.execute("SET LOCAL timezone = 'UTC'; SET LOCAL log_parameter_max_length_on_error = 0")
        for user in ("alice", "bob"):
            import_secret(conn, user, SECRET)
        yield conn


# What is done to these users, the check, and what it says of alice, and of alice and bob. {} is "user_id <= 'alice'", or 'bob'.
OF_THESE = "UPDATE totp.attempts SET {change} WHERE {{}}"
RECOVERY_CODES = "SELECT totp_reset_recovery_codes(user_id, 2) FROM totp.attempts WHERE {}"
COUNTED = {
    "no row of attempts": ("DELETE FROM totp.attempts WHERE {}", "rows", "fail",
                           "1 secret or recovery set lacks a row in totp.attempts or totp.used_codes: restore the row, or enroll the user again",
                           "2 secrets or recovery sets lack a row in totp.attempts or totp.used_codes: restore the rows, or enroll the users again"),
    "no row of used codes": ("DELETE FROM totp.used_codes WHERE {}", "rows", "fail",
                             "1 secret or recovery set lacks a row in totp.attempts or totp.used_codes: restore the row, or enroll the user again",
                             "2 secrets or recovery sets lack a row in totp.attempts or totp.used_codes: restore the rows, or enroll the users again"),
    "no data key": ("UPDATE totp.secrets SET key_id = -1 WHERE {}", "data_keys", "fail",
                  "1 secret or recovery set is sealed under a data key that does not exist: restore totp.data_keys",
                  "2 secrets or recovery sets are sealed under a data key that does not exist: restore totp.data_keys"),
    "master key": (f"{RECOVERY_CODES}; DELETE FROM totp.secrets WHERE NOT {{}}; UPDATE totp.data_keys SET master_key = '0123456789abcdef'", "lost_master_key", "fail",
                   *["what is sealed under master key 0123456789abcdef, which is not loaded, cannot be opened: add it to the key file again;"
                     " SELECT * FROM totp_keys() counts the secrets"] * 2),
    "used in the future": ("UPDATE totp.used_codes SET used_at = '2030-01-01 14:00Z' WHERE {}", "future_times", "fail",
                           "the clock was ahead, or is behind now: correct it; 1 secret or recovery set in totp.used_codes was used later than now,"
                           " at 2030-01-01 14:00:00+00, and is refused until then: call totp_reset() if the user cannot wait",
                           "the clock was ahead, or is behind now: correct it; 2 secrets or recovery sets in totp.used_codes were used later than now,"
                           " the last at 2030-01-01 14:00:00+00, and such secrets are refused until then: call totp_reset() for users who cannot wait"),
    "locks": (OF_THESE.format(change="locked_until = '2030-01-02Z'"), "future_times", "warn",
              "the clock was ahead, or is behind now: correct it; 1 lock in totp.attempts ends later than any lock can, and is ignored: call totp_unlock() for this user",
              "the clock was ahead, or is behind now: correct it; 2 locks in totp.attempts end later than any lock can, and are ignored: call totp_unlock() for these users"),
    "old recovery codes": (f"{RECOVERY_CODES}; UPDATE totp.floor SET floor_at = '2030-01-01 11:59Z'; UPDATE totp.recovery_codes SET created_at = '2030-01-01 11:00Z'",
                           "old_recovery_codes", "ok",
                           "1 set of recovery codes is older than the last failover or restore: see recovery_after_restore",
                           "2 sets of recovery codes are older than the last failover or restore: see recovery_after_restore"),
    "locked": (OF_THESE.format(change="locked_until = '2030-01-01 12:00:01Z'"), "locked_users", "ok",
               '1 user is locked, 0 of them until totp_unlock(), and 0 are one wrong code away: nothing to do; the user is "alice"',
               '2 users are locked, 0 of them until totp_unlock(), and 0 are one wrong code away: nothing to do; the last of them "alice", "bob"'),
    "locked forever": (OF_THESE.format(change="recovery_locked_until = 'infinity'"), "locked_users", "warn",
                       '1 user is locked, 1 of them until totp_unlock(), and 0 are one wrong code away: unlock the users that you know; the user is "alice"',
                       '2 users are locked, 2 of them until totp_unlock(), and 0 are one wrong code away: unlock the users that you know; the last of them "alice", "bob"'),
    "near a lock": (OF_THESE.format(change="failures = 4"), "locked_users", "ok",
                    '0 users are locked, 0 of them until totp_unlock(), and 1 is one wrong code away: nothing to do; the user is "alice"',
                    '0 users are locked, 0 of them until totp_unlock(), and 2 are one wrong code away: nothing to do; the last of them "alice", "bob"'),
    "wrong codes": (OF_THESE.format(change="last_failed_at = '2030-01-01 11:59Z'") + "; UPDATE totp.used_codes SET used_at = '2030-01-01 11:59Z' WHERE {}",
                    "failures_over_many_users", "ok",
                    "1 user had a wrong code in the last hour, and 1 secret was used: nothing to do",
                    "2 users had a wrong code in the last hour, and 2 secrets were used: nothing to do"),
    "replays": ("INSERT INTO totp.audit_log (at, event, actor, db_user, application_name) SELECT '2030-01-01 11:59Z', 'replayed', '', '', '' FROM totp.attempts WHERE {}",
                "replays", "ok",
                "1 used code was tried again in the last hour, in a transaction that committed: nothing to do",
                "2 used codes were tried again in the last hour, in transactions that committed: nothing to do"),
    "not confirmed": ("UPDATE totp.secrets SET slot = 'pending', confirmed_at = NULL, enforced_since = NULL, expires_at = '2030-01-01 12:00Z' WHERE {}",
                      "unconfirmed_devices", "ok",
                      "1 device was enrolled and never confirmed, and its secret has expired: enroll again, or call totp_remove()",
                      "2 devices were enrolled and never confirmed, and their secrets have expired: enroll again, or call totp_remove()"),
    "few recovery codes": (RECOVERY_CODES, "recovery_codes_low", "ok",
                           "1 user has two or fewer recovery codes left: ask for a new set",
                           "2 users have two or fewer recovery codes left: ask for new sets"),
    "recovery codes alone": (f"{RECOVERY_CODES}; DELETE FROM totp.secrets", "recovery_codes_alone", "ok",
                             "1 user has recovery codes and no device: call totp_remove() if the user should no longer sign in",
                             "2 users have recovery codes and no device: call totp_remove() for users who should no longer sign in"),
}


@pytest.mark.parametrize("change, check, status, one, both", COUNTED.values(), ids=COUNTED)
def test_one_and_two_of_what_a_check_counts(two, change, check, status, one, both):
    for last, detail in (("alice", one), ("bob", both)):
        with two.transaction(force_rollback=True):
            two.execute(change.replace("{}", f"user_id <= '{last}'"))
            assert health(two)[check] == (status, detail)
        assert health(two)[check] == ("ok", HEALTHY_IN_FULL[check])


def test_one_and_two_roles_that_write_everything(two):
    two.execute("CREATE ROLE loader_01 IN ROLE pg_write_all_data")
    assert health(two)["write_all_data"] == ("warn", '"loader_01" can change every table, totp.audit_log too: revoke pg_write_all_data')
    two.execute("CREATE ROLE loader_02 IN ROLE loader_01")
    assert health(two)["write_all_data"] == ("warn", '"loader_01", "loader_02" can change every table, totp.audit_log too: revoke pg_write_all_data')


def test_ten_roles_that_write_everything_are_named(two):
    names = ", ".join(f'"loader_{number:02}"' for number in range(1, 11))
    for number in range(1, 13):
        two.execute(f"CREATE ROLE loader_{number:02} IN ROLE pg_write_all_data")
    assert health(two)["write_all_data"] == ("warn", f"{names} and 2 more can change every table, totp.audit_log too: revoke pg_write_all_data")


def test_the_signs_of_an_attack_begin_at_these_numbers(two):
    two.execute("INSERT INTO totp.audit_log (at, event, actor, db_user, application_name) SELECT '2030-01-01 11:59Z', 'replayed', '', '', '' FROM generate_series(1, 9)")
    two.execute("INSERT INTO totp.attempts SELECT '-infinity', '-infinity', '2030-01-01 11:59Z', 1, 0, number FROM generate_series(1, 19) AS number")
    assert {name: health(two)[name][0] for name in ("replays", "failures_over_many_users")} == {"replays": "ok", "failures_over_many_users": "ok"}
    two.execute("INSERT INTO totp.audit_log (at, event, actor, db_user, application_name) VALUES ('2030-01-01 11:59Z', 'replayed', '', '', '')")
    two.execute("INSERT INTO totp.attempts VALUES ('-infinity', '-infinity', '2030-01-01 11:59Z', 1, 0, 'carol')")
    assert health(two)["replays"] == ("warn", "10 used codes were tried again in the last hour, in transactions that committed:"
                                              " a client sends codes twice, or someone intercepts them; look at totp.audit_log")
    assert health(two)["failures_over_many_users"] == ("warn", "20 users had a wrong code in the last hour, and 0 secrets were used:"
                                                               " this looks like password spraying; look at client_addr in totp.audit_log")


TRIGGER = "CREATE TRIGGER {} BEFORE INSERT ON totp.{} FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()"
LOGGED = "the server log may show codes that are sent as parameters: set log_parameter_max_length and log_parameter_max_length_on_error to 0"
SUBSCRIBED = "INSERT INTO pg_subscription_rel SELECT oid, 'totp.floor'::regclass, 'r' FROM pg_subscription"
FAULTS = {  # what is done to the database, the check, and what it says
    "index on attempts": ("CREATE INDEX slow ON totp.attempts (failures)", "table_attempts", "fail",
                          "table totp.attempts: index totp.slow is on a column that changes in place: drop it"),
    "index on used_codes": ("CREATE INDEX slow ON totp.used_codes (used_at)", "table_used_codes", "fail",
                            "table totp.used_codes: index totp.slow is on a column that changes in place: drop it"),
    "trigger": (TRIGGER.format('"T"', "used_codes"), "table_used_codes", "fail", 'table totp.used_codes: trigger "T" would not see its changes: drop it'),
    "publication": ('CREATE PUBLICATION "P" FOR TABLE totp.floor', "table_floor", "fail",
                    'table totp.floor: publication "P" would not see its changes: ALTER PUBLICATION "P" DROP TABLE totp.floor'),
    "publication of the schema": ("CREATE PUBLICATION p FOR TABLES IN SCHEMA totp", "table_attempts", "fail",
                                  "table totp.attempts: publication p would not see its changes: ALTER PUBLICATION p DROP TABLES IN SCHEMA totp"),
    "publication of all tables": ("CREATE PUBLICATION p FOR ALL TABLES", "table_used_codes", "fail",
                                  "table totp.used_codes: publication p would not see its changes: it is FOR ALL TABLES,"
                                  " so replace it by one of your tables or schemas, without totp, as standby-and-failover.md says"),
    "subscription": (f"CREATE SUBSCRIPTION s CONNECTION '' PUBLICATION p WITH (connect = false, slot_name = NONE); {SUBSCRIBED}", "table_floor", "fail",
                     "table totp.floor: subscription s writes to it, and gets no changes in place: on the publisher, publish without schema totp;"
                     " then ALTER SUBSCRIPTION s SET PUBLICATION or REFRESH PUBLICATION"),
    "issuer": ("ALTER ROLE postgres SET totp.issuer = 'Example'; UPDATE pg_db_role_setting SET setconfig = '{totp.issuer=a:b}' WHERE setrole = 'postgres'::regrole", "issuer", "warn",
               'totp.issuer is not valid for role "postgres", so sessions ignore it: set an issuer of at most 256 bytes, without a colon or a control character'),
    "unlogged": ("ALTER TABLE totp.used_codes SET UNLOGGED", "table_used_codes", "fail", "table totp.used_codes: it is not a logged table of access method heap"),
    "column of floor": ("ALTER TABLE totp.floor RENAME timeline TO line", "table_floor", "fail", "table totp.floor: its first five columns have changed"),
    "column of attempts": ("ALTER TABLE totp.attempts RENAME locked_until TO until", "table_attempts", "fail", "table totp.attempts: its first five columns have changed"),
    "counters, missing": ("ALTER TABLE totp.counters RENAME TO away", "table_counters", "warn", "table totp.counters: it is missing"),
    "missing": ("ALTER TABLE totp.used_codes RENAME TO away", "table_used_codes", "fail", "table totp.used_codes: it is missing"),
    "all faults of a table": ("ALTER TABLE totp.attempts RENAME failures TO fails; ALTER TABLE totp.attempts SET UNLOGGED;"
                              f"CREATE INDEX slow ON totp.attempts (fails); {TRIGGER.format('t', 'attempts')}", "table_attempts", "fail",
                              "table totp.attempts: index totp.slow is on a column that changes in place: drop it;"
                              " table totp.attempts: it is not a logged table of access method heap;"
                              " table totp.attempts: its first five columns have changed;"
                              " table totp.attempts: trigger t would not see its changes: drop it"),
    "consistency checking": ("SET LOCAL wal_consistency_checking = 'generic'", "wal_consistency_checking", "fail",
                             "it would abort crash recovery and stop standbys: remove generic and all from it"),
    "consistency checking for a role": ("CREATE ROLE tester; ALTER ROLE tester SET wal_consistency_checking = 'all'", "wal_consistency_checking", "fail",
                                        "it would abort crash recovery and stop standbys: remove generic and all from it"),
    "parameters in the log": ("SET LOCAL log_parameter_max_length_on_error = -1", "log_parameters", "warn", LOGGED),
    "statements in the log": ("SET LOCAL log_min_duration_statement = 0", "log_parameters", "warn", LOGGED),
    "statements of a role in the log": ("CREATE ROLE tester; ALTER ROLE tester SET log_statement = 'all'", "log_parameters", "warn", LOGGED),
    "a function for PUBLIC": ("GRANT EXECUTE ON FUNCTION totp_keys() TO PUBLIC", "rights", "fail", "PUBLIC has rights on public.totp_keys(): revoke them"),
    "a table for PUBLIC": ("GRANT SELECT, INSERT ON totp.secrets TO PUBLIC", "rights", "fail", "PUBLIC has rights on totp.secrets: revoke them"),
    "a column for PUBLIC": ("GRANT SELECT (sealed) ON totp.secrets TO PUBLIC", "rights", "fail", "PUBLIC has rights on totp.secrets (sealed): revoke them"),
    "the schema for PUBLIC": ("GRANT USAGE ON SCHEMA totp TO PUBLIC", "rights", "fail", "PUBLIC has rights on schema totp: revoke them"),
    "both for PUBLIC": ("GRANT USAGE ON SCHEMA totp TO PUBLIC; GRANT SELECT ON totp.secrets TO PUBLIC", "rights", "fail",
                        "PUBLIC has rights on schema totp, totp.secrets: revoke them"),
    "a restore": ("UPDATE totp.floor SET floor_at = '2030-01-01 11:59Z', timeline = -1", "recovery_after_restore", "warn",
                  "there was a failover or restore, noticed at 2030-01-01 11:59:00+00, and a recovery code used just before it may be good again:"
                  " create new ones with totp_reset_recovery_codes(), then SELECT totp_acknowledge_restore()"),
    "a floor in the future": ("UPDATE totp.floor SET floor_at = '2030-01-01 12:01Z'", "clock", "fail",
                              "the clock was ahead when this cluster first judged a code, or is behind now: codes of older secrets are refused until 2030-01-01 12:01:00+00"),
}


def test_the_words_about_a_master_key_that_sealed_nothing(two):
    two.execute("DELETE FROM totp.secrets; UPDATE totp.data_keys SET master_key = '0123456789abcdef'")
    assert health(two)["lost_master_key"] == (
        "fail", "nothing is sealed under master key 0123456789abcdef, which is not loaded: if it was thrown away,"
                " SELECT * FROM totp_forget_unreadable('0123456789abcdef'); if not, add it to the key file again")


@pytest.mark.parametrize("change, check, status, detail", FAULTS.values(), ids=FAULTS)
def test_the_words_about_a_fault_while_it_is_there(two, change, check, status, detail):
    with two.transaction(force_rollback=True):
        two.execute(change)
        assert health(two)[check] == (status, detail)
    assert health(two)[check] == ("ok", HEALTHY_IN_FULL[check])


def test_replays_beyond_ten_thousand_are_not_counted(two):
    two.execute("INSERT INTO totp.audit_log (at, event, actor, db_user, application_name) SELECT '2030-01-01 11:59Z', 'replayed', '', '', '' FROM generate_series(1, 10001)")
    assert health(two)["replays"][1].startswith("10000 or more used codes were tried again in the last hour, in transactions that committed or not: a client")


def test_the_words_about_a_table_that_cannot_be_read(two):
    two.execute("ALTER TABLE totp.secrets RENAME TO away")
    assert health(two)["table_secrets"] == ("fail", "table totp.secrets: it is missing, or its columns have changed: restore it")
