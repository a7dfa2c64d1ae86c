"""totp.reseal() seals a secret again, under another data key: for a rotation, and for nobody else."""

from contextlib import closing

import psycopg
import pytest
from totp import SECRET, error_of, import_secret

RESEAL = "SELECT totp.reseal(user_id, device, secret_id, algorithm, digits, period, sealed, {key}) FROM totp.secrets"


def test_nothing_is_resealed_but_by_a_rotation(db):
    """The owner neither, in whatever transaction, before a rotation and after one, also one that failed."""
    with closing(db.connect()) as conn:
        import_secret(conn, "alice", SECRET)

        def refused():
            assert error_of(conn, RESEAL.format(key="key_id")).sqlstate == "42501"

        refused()
        conn.execute("SELECT totp_rotate_key()")
        refused()
        with conn.transaction():
            conn.execute("SELECT totp_rotate_key()")
            conn.execute("SAVEPOINT before")
            refused()
            conn.execute("ROLLBACK TO before")
        conn.execute("CREATE FUNCTION pg_temp.fails() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE division_by_zero; END'")
        conn.execute("CREATE TRIGGER t BEFORE UPDATE ON totp.secrets FOR EACH ROW EXECUTE FUNCTION pg_temp.fails()")
        for rotate in ("SELECT totp_rotate_key()", "CALL totp_rotate_key_online()"):
            with pytest.raises(psycopg.errors.DivisionByZero):
                conn.execute(rotate)
            refused()


def test_what_is_planted_into_a_rotation_gains_nothing(db):
    """By who may make a trigger there, or an index. It gets nothing under another key, and under the new one what the table gets."""
    db.execute("""
        CREATE TABLE gained (key_id integer, outcome text);
        CREATE FUNCTION gain(s totp.secrets, key integer) RETURNS text LANGUAGE plpgsql AS $$
        BEGIN
          RETURN totp.reseal(s.user_id, s.device, s.secret_id, s.algorithm, s.digits, s.period, s.sealed, key);
        EXCEPTION WHEN OTHERS THEN RETURN SQLSTATE;
        END $$;
        CREATE FUNCTION planted() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
          INSERT INTO public.gained VALUES (OLD.key_id, public.gain(OLD, OLD.key_id)), (NEW.key_id, public.gain(OLD, NEW.key_id));
          RETURN NEW;
        END $$;
        CREATE TRIGGER t BEFORE UPDATE ON totp.secrets FOR EACH ROW EXECUTE FUNCTION planted()""")
    with closing(db.connect()) as conn:
        import_secret(conn, "alice", SECRET)
        conn.execute("SELECT totp_rotate_key()")
        [(old, refused), (new, sealed)] = conn.execute("SELECT key_id, outcome FROM gained ORDER BY key_id").fetchall()
        assert (old, refused) == (new - 1, "42501")
        assert sealed.startswith(f"\\x01{new:08x}")
