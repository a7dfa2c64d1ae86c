"""The whole SQL surface, called on one server and through a router: the same results and the same errors.

The functions are those of the catalog: a new one that is not called here fails the tests. What may differ is named in
router_and_server.py.
"""

from contextlib import closing
from itertools import islice

import pytest
from router_and_server import OTHER, REFUSED, Both, answer
from totp import NOON, SECRET, code_at, force_parallel, good, wrong

CODE, CODE_OF_OTHER = good(), code_at(OTHER, NOON, "SHA256", 8, 60)
URI = f"otpauth://totp/a?secret={SECRET}"
AT = NOON.isoformat()
OF_TABLET = f"totp_code_at(current_setting('its.secret'), '{AT}')"

BEFORE_THE_FIRST_ENROLLMENT = """
SELECT * FROM totp_keys()
SELECT * FROM totp_health()
SELECT * FROM totp_health(full => true)
SELECT * FROM totp_health(NULL)
SELECT * FROM totp_rotate_key()
CALL totp_rotate_key_online()
SELECT * FROM totp_forget_unreadable('0123456789abcdef')
"""

# One after the other. Each function does its work in one of them at least.
CALLS = f"""
SELECT totp_import('ann', '{SECRET}', confirmed => true)
SELECT totp_import(user_id => 'bob', secret => '{OTHER}', account_name => 'a@b', issuer => 'Iss', device => 'phone', algorithm => 'sha-256', digits => 8, period => 60, allow_weak => true)
SELECT totp_import('cid', 'otpauth://totp/Iss:cid?secret={OTHER}&issuer=Iss&digits=7')
SELECT totp_import('cid', 'abc')
SELECT totp_import('cid', '!!!!')
SELECT totp_import('cid', '{SECRET}', 'a:b')
SELECT totp_import('cid', '{OTHER}', device => 'another')
SELECT * FROM totp_status('ann')
SELECT * FROM totp_status(user_id => 'bob')
SELECT uses, failures FROM totp_status('nobody')
SELECT totp_enabled('ann'), totp_enabled('bob'), totp_enabled('nobody'), totp_enabled('')
SELECT * FROM totp_check('ann', '{CODE}', 'none of hers')
SELECT * FROM totp_check(code => '{CODE}', user_id => 'ann', device => 'default')
SELECT * FROM totp_check('ann', '{CODE}')
SELECT totp_verify('ann', '{CODE}')
SELECT totp_verify('ann', '{good(1)}', 'default'), totp_verify('ann', '{good(1)}'), totp_verify('nobody', '{CODE}')
SELECT totp_verify('ann', ' {wrong()[:3]} {wrong()[3:]} ')
SELECT * FROM totp_check('ann', '{wrong()}')
SELECT * FROM totp_check('ann', '')
SELECT * FROM totp_check('ann', '1234\u00e956')
SELECT * FROM totp_check('', '{CODE}')
SELECT totp_verify('ann')
SELECT totp_verify('ann', '1', no_such => 'x')
SELECT totp_verify(1, 2)
SELECT totp_confirm('bob', '1', 'tablet')
SELECT totp_confirm('bob', '{CODE_OF_OTHER}', device => 'phone')
SELECT totp_confirm('bob', '{CODE_OF_OTHER}', device => 'phone')
SELECT r.* FROM generate_series(1, 6) AS n, totp_check('bob', '0000000' || n) AS r
SELECT * FROM totp_check('bob', '{CODE_OF_OTHER}')
SELECT * FROM totp_status('bob')
SELECT totp_unlock('bob'), totp_unlock('bob'), totp_unlock('nobody')
SELECT * FROM totp_enroll('dora')
SELECT * FROM totp_enroll('dora', 'dora@example.com', 'Iss', 'phone', 'SHA512', 8, 60, false)
SELECT totp_verify('dora', totp_code_at(secret, '{AT}')) FROM totp_enroll('dora')
SELECT * FROM totp_enroll('dora', digits => 9)
SELECT * FROM totp_enroll('dora', period => 5)
SELECT * FROM totp_enroll('dora', algorithm => 'MD5')
SELECT * FROM totp_enroll('dora', issuer => 'a:b')
SELECT * FROM totp_enroll('')
SELECT * FROM totp_enroll(repeat('x', 257))
SELECT * FROM totp_enroll('dora', device => '')
SELECT e.* FROM generate_series(1, 8) AS n, totp_enroll('dora', device => 'device ' || n) AS e
SELECT * FROM totp_enroll('dora', device => 'not one too many')
SELECT * FROM totp_reset('dora', 'none of hers')
SELECT * FROM totp_reset('nobody')
SELECT totp_verify('dora', totp_code_at(secret, '{AT}')) FROM totp_reset(user_id => 'dora')
SELECT totp_disable('dora', 'none of hers')
SELECT totp_disable('nobody')
SELECT totp_disable('dora', 'default')
SELECT * FROM totp_enroll('dora')
SELECT * FROM totp_reset('dora')
SELECT * FROM totp_check('dora', '123456', 'default')
SELECT * FROM totp_status('dora')
SELECT totp_enable('dora', device => 'default'), totp_enable('dora'), totp_disable('dora'), totp_enable('dora')
SELECT totp_enable('nobody')
SELECT * FROM totp_reset_recovery_codes('ann', count => 3)
SELECT totp_reset_recovery_codes('ann', 0)
SELECT totp_recovery_codes('ann', 21)
SELECT totp_recovery_codes('nobody')
SELECT totp_recover('ann', code), totp_recover(recovery_code => code, user_id => 'ann') FROM totp_reset_recovery_codes('ann') AS code
SELECT totp_recover('ann', 'x'), totp_recover('ann', 'AAAAAA-AAAAAA-AAAAAA-AAAAAA'), totp_recover('nobody', 'AAAAAA-AAAAAA-AAAAAA-AAAAAA')
SELECT recovery_codes_left FROM totp_status('ann')
SELECT totp_import('eve', '{SECRET}', confirmed => true)
SELECT * FROM totp_recovery_codes('eve')
SELECT * FROM totp_recovery_codes('eve', 3, '{wrong()}')
SELECT * FROM totp_recovery_codes('eve', count => 3, proof => '{good(-1)}')
SELECT * FROM totp_recovery_codes('eve', 3, '{good(-1)}')
SELECT * FROM totp_check_confirm('eve', '123456', 'tablet')
SELECT set_config('its.secret', secret, false) FROM totp_enroll('eve', device => 'tablet')
SELECT * FROM totp_status('eve')
SELECT * FROM totp_check_confirm('eve', {OF_TABLET}, 'tablet')
SELECT totp_confirm('eve', {OF_TABLET}, 'tablet')
SELECT * FROM totp_check_confirm('eve', '{wrong()}', 'tablet', '{good()}')
SELECT * FROM totp_check_confirm('eve', {OF_TABLET}, 'tablet', '{wrong()}')
SELECT * FROM totp_check_confirm('eve', {OF_TABLET}, 'tablet', '{good(-1)}')
SELECT * FROM totp_check_confirm('eve', {OF_TABLET}, 'tablet', '{good()}', 21)
SELECT * FROM totp_check_confirm('eve', {OF_TABLET}, device => 'tablet', proof => '{good()}', recovery_codes => 2)
SELECT totp_confirm('eve', '1', proof => 'x'), totp_unlock('eve')
SELECT set_config('its.secret', secret, false) FROM totp_enroll('eve', device => 'watch')
SELECT totp_confirm('eve', {OF_TABLET}, 'watch', proof => code) FROM totp_reset_recovery_codes('eve', 1) AS code
SELECT r.* FROM totp_reset_recovery_codes('eve', 2) AS code, totp_check_recover('eve', code) AS r
SELECT * FROM totp_check_recover('eve', 'x')
SELECT * FROM totp_check_recover(recovery_code => 'AAAAAA-AAAAAA-AAAAAA-AAAAAA', user_id => 'eve')
SELECT * FROM totp_check_recover('nobody', 'AAAAAA-AAAAAA-AAAAAA-AAAAAA')
SELECT totp_rename_device('eve', 'tablet', 'phone')
SELECT totp_rename_device('eve', 'tablet', 'phone', '{wrong()}')
SELECT totp_rename_device('eve', 'tablet', 'watch', '{wrong()}')
SELECT totp_rename_device('eve', 'none of hers', 'phone', '{wrong()}')
SELECT totp_rename_device('eve', 'tablet', new_device => 'phone', proof => code) FROM totp_reset_recovery_codes('eve', 1) AS code
SELECT totp_enroll('eve', keep_current => false)
SELECT totp_resync('eve', '{wrong()}', '{wrong(1)}', 'phone')
SELECT totp_resync('nobody', '{wrong()}', '{wrong(1)}')
SELECT totp_resync('eve', 'x', NULL)
SELECT totp_unenroll('eve', NULL, 'phone')
SELECT totp_unenroll('eve', '{wrong()}', 'phone')
SELECT totp_unenroll('eve', device => 'phone', proof => code) FROM totp_reset_recovery_codes('eve', 1) AS code
SELECT * FROM totp_status('eve')
SELECT totp_move_device('eve', 'default', 'bob', 'phone')
SELECT totp_move_device('eve', 'default', '', 'phone')
SELECT totp_move_device('eve', 'default', 'fay', new_device => 'token'), totp_move_device('eve', 'default', 'fay', 'another')
SELECT * FROM totp_status('fay')
SELECT totp_unenroll('fay', '{good()}')
SELECT totp_unenroll('fay', '{good(1)}')
SELECT totp_unenroll('fay', '{good(1)}')
SELECT * FROM totp_status('fay')
SELECT totp_import('gus', left('{SECRET}', 31) || chr(64 + n), device => 'device ' || n, confirmed => true) FROM generate_series(1, 10) AS n
SELECT totp_import('gus', '{OTHER}', device => 'one too many')
SELECT totp_rename_user('ann', 'ann'), totp_rename_user('nobody', 'zoe')
SELECT totp_rename_user('ann', 'bob')
SELECT totp_rename_user('ann', '')
SELECT totp_rename_user('ann', new_user_id => 'anna')
SELECT * FROM totp_status('anna')
SELECT totp_code_at('{SECRET}', at => '{AT}', digits => 8)
SELECT totp_code_at('bad!', '{AT}')
SELECT totp_qr_svg('{URI}'), totp_qr_png('{URI}'), totp_qr_png('{URI}', scale => 3), totp_qr_text(uri => '{URI}')
SELECT * FROM totp_read_tokens(E'serial,secret,period,expires\\n1,{SECRET},30,2030-01-01T00:00:00Z\\n2,x,30', 'csv')
SELECT * FROM totp_read_tokens('x', key => '\\x00')
SELECT totp_qr_png('x', 0)
SELECT totp_qr_text(repeat('x', 5000))
SELECT * FROM totp_keys()
SELECT * FROM totp_rotate_key()
CALL totp_rotate_key_online(0)
CALL totp_rotate_key_online(batch_size => 3)
SELECT * FROM totp_keys()
SELECT * FROM totp_forget_unreadable('not a key')
SELECT * FROM totp_stats(since => '1 hour') ORDER BY event
SELECT * FROM totp_metrics() WHERE metric = 'totp_master_keys_loaded'
SELECT * FROM totp_stats('-1 hour')
SELECT * FROM totp_prune_audit('-1 day')
SELECT * FROM totp_prune_audit(older_than => '1 day')
SELECT * FROM totp_health()
SELECT totp_grant('postgres', 'nothing')
SELECT totp_grant('no_such_role', 'verify')
SELECT totp_revoke('postgres', 'nothing')
SELECT totp_revoke('no_such_role', 'verify')
SELECT totp_grant(role => 'postgres', capability => 'verify')
SELECT totp_remove('nobody'), totp_remove('bob', device => 'none of his'), totp_remove('bob')
SELECT * FROM totp_status('bob')
"""


@pytest.fixture(scope="module")
def servers(make_module_cluster) -> Both:
    return Both(make_module_cluster())


@pytest.fixture
def both(servers) -> Both:
    servers.empty()
    return servers


# --- Calls that work, and calls that cannot ---------------------------------------------------------------------------


def test_every_function_does_its_work(both):
    with both.sides() as sides:
        for call in (*BEFORE_THE_FIRST_ENROLLMENT.strip().splitlines(), *CALLS.strip().splitlines()):
            sides.ask(call)
    assert sides.states == {"22023", "42501", "42704", "42883", "54000", "55000"}
    both.cluster.write_key_file("5f" * 31 + "60\n")  # and the old one is lost
    with both.sides() as later:
        later.ask("SELECT f.* FROM totp_keys() AS k, totp_forget_unreadable(k.master_key) AS f WHERE NOT k.master_key_loaded")
        later.ask("SELECT * FROM totp_keys()")
    assert {function.name for function in both.functions} - sides.done - later.done == set(REFUSED)
    audit = "SELECT event, user_id, device, actor, detail FROM totp.audit_log WHERE event NOT IN ('granted', 'revoked') ORDER BY id"
    one, shard = (database.execute(audit) for database in both.behind)
    assert one == shard and len(one) > 50


def test_null_in_every_place_gives_the_same(both):
    with both.sides() as sides:
        for function in both.functions:
            for place in range(len(function.arguments)):
                arguments = function.good()
                arguments[place] = None
                sides.ask(*function.call(arguments))
            sides.ask(*function.call([None] * len(function.arguments)))


def test_every_kind_of_wrong_argument_gives_the_same(both):
    with both.sides() as sides:
        for function in both.functions:
            sides.ask("SELECT totp_remove('alice'), totp_remove('carol')")
            sides.ask("SELECT totp_import('alice', %s, confirmed => true)", [SECRET])
            for number, arguments in enumerate(islice(function.hostile(), 0, None, 4)):
                if number % 4 == 0:  # what they charge would lock alice, and hide the rest
                    sides.ask("SELECT totp_unlock('alice')")
                sides.ask(*function.call(arguments))
    assert sides.states >= {"22023", "42704"}


# --- Where it is called ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("begin, states", [
    ("BEGIN READ ONLY", {"25006"}),
    ("BEGIN ISOLATION LEVEL REPEATABLE READ", {"25001"}),
    ("BEGIN ISOLATION LEVEL SERIALIZABLE", {"25001"}),
    ("BEGIN", {"2D000"}),
])
def test_calls_in_a_transaction_block_give_the_same(both, begin, states):
    with both.sides() as sides:
        for function in both.functions:
            sides.ask("SELECT totp_import('alice', %s, confirmed => true)", [SECRET])
            sides.ask(begin)
            sides.ask(*function.call(function.good()))
            sides.ask("COMMIT")
            sides.ask("SELECT totp_remove('alice'), totp_remove('carol')")
    assert sides.states >= states


def test_calls_that_are_read_only_by_default_give_the_same(both):
    """As the block above, where no block keeps a procedure from its COMMIT."""
    with both.sides() as sides:
        sides.ask("SET default_transaction_read_only = on")
        for function in both.functions:
            sides.ask(*function.call(function.good()))
    assert sides.states == {"25006"}


# --- Who calls it ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("capability", [None, "verify", "enroll", "audit", "admin"])
def test_the_rights_are_the_same(both, capability):
    role = both.one.create_role()
    for database in (both.one, both.router.database):
        database.execute(f"GRANT USAGE ON SCHEMA public TO {role}")
        if capability:
            database.execute("SELECT totp_grant(%s, %s)", [role, capability])
    with both.sides(role) as sides:
        refused = {function.name for function in both.functions if sides.ask(*function.call(function.good())) == "42501"}
        if capability == "audit":
            sides.ask("SELECT count(*) > 0 FROM totp.audit_log WHERE event <> 'granted'")
    assert len(refused) == len(both.functions) if capability is None else 0 < len(refused) < len(both.functions)


# --- What is broken -------------------------------------------------------------------------------------------------


ABOUT_ANN = [f"SELECT totp_verify('ann', '{wrong()}')", f"SELECT * FROM totp_check('ann', '{CODE}')", f"SELECT totp_confirm('ann', '{CODE}')",
             "SELECT totp_recover('ann', 'AAAAAA-AAAAAA-AAAAAA-AAAAAA')", "SELECT totp_unlock('ann')", "SELECT totp_enabled('ann')",
             "SELECT * FROM totp_check_recover('ann', 'AAAAAA-AAAAAA-AAAAAA-AAAAAA')", f"SELECT totp_unenroll('ann', '{wrong()}')",
             "SELECT totp_move_device('ann', 'default', 'hers', 'default')", "SELECT totp_move_device('hers', 'default', 'ann', 'default')",
             "SELECT * FROM totp_status('ann')", "SELECT * FROM totp_reset('ann')", "SELECT * FROM totp_enroll('ann')",
             "SELECT * FROM totp_check_confirm('ann', '1', proof => '1')", "SELECT * FROM totp_recovery_codes('ann', 2, '1')"]


def _sign_up(both: Both) -> None:
    with both.sides() as sides:
        sides.ask("SELECT totp_import('ann', %s, confirmed => true)", [SECRET])
        sides.ask("SELECT * FROM totp_reset_recovery_codes('ann')")


@pytest.mark.parametrize("broken, state", [
    ("DELETE FROM totp.attempts", "XX001"),
    ("DELETE FROM totp.used_codes", "XX001"),
    ("DELETE FROM totp.data_keys", "XX001"),
    ("UPDATE totp.secrets SET sealed = set_byte(sealed, 20, get_byte(sealed, 20) # 1)", "XX001"),
    ("UPDATE totp.recovery_codes SET sealed = set_byte(sealed, 20, get_byte(sealed, 20) # 1)", "XX001"),
])
def test_broken_rows_give_the_same(both, broken, state):
    _sign_up(both)
    both.on_servers(broken)
    with both.sides() as sides:
        for call in ABOUT_ANN:
            sides.ask(call)
        sides.ask("SELECT * FROM totp_health()")
    assert state in sides.states


def test_an_altered_table_gives_the_same(both):
    _sign_up(both)
    both.on_servers("ALTER TABLE totp.attempts SET UNLOGGED")
    try:
        with both.sides() as sides:
            for call in ABOUT_ANN:
                sides.ask(call)
        assert "XX001" in sides.states
    finally:
        both.on_servers("ALTER TABLE totp.attempts SET LOGGED")


@pytest.mark.parametrize("text, mode, state", [
    ("", 0o600, "F0000"), ("0" * 64, 0o600, "F0000"), ("not a key", 0o600, "F0000"), (None, 0o644, "F0000"), ("5f" * 31 + "61", 0o600, "F0000"),
])
def test_a_changed_key_file_gives_the_same(both, text, mode, state):
    """In new sessions: those that have a key keep it."""
    _sign_up(both)
    key = both.cluster.key_file.read_text()
    both.cluster.write_key_file(key if text is None else text + "\n", mode)
    try:
        with both.sides() as sides:
            for call in (*ABOUT_ANN, "SELECT * FROM totp_rotate_key()", "SELECT * FROM totp_enroll('bob')"):
                sides.ask(call)
        assert state in sides.states
    finally:
        both.cluster.write_key_file(key)


# --- What is different ------------------------------------------------------------------------------------------------


def test_a_rollback_undoes_nothing_on_a_shard(both):
    _sign_up(both)
    for database, left in ((both.one, 1), (both.router.database, 0)):
        with closing(database.connect(autocommit=False)) as conn:
            conn.execute("SELECT totp_remove('ann')")
            conn.rollback()
            assert len(conn.execute("SELECT * FROM totp_status('ann')").fetchall()) == left


def test_a_router_does_not_notice_parallel_mode(both):
    """The call runs on the shard, where nothing is parallel."""
    _sign_up(both)
    answers = []
    for database in (both.one, both.router.database):
        database.execute("CREATE FUNCTION lie() RETURNS boolean LANGUAGE plpgsql PARALLEL SAFE AS"
                         f" $$ BEGIN RETURN totp_verify('ann', '{CODE}'); END $$")
        with closing(database.connect()) as conn:
            force_parallel(conn)
            answers.append(answer(conn, "SELECT lie()"))
    assert answers[0].sqlstate == "25000" and answers[1].rows == [(True,)]
