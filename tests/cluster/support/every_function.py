"""One walk through every function that changes anything or judges a code."""

from many_users import secret_of
from totp import EARLIER, LATER, MAX_ATTEMPTS, NOON, NO_CODE, code_at, error_of, wrong_codes


def walk(conn) -> set[str]:
    """Call every function, successfully and not; all secrets, codes and URIs that were shown or given."""
    shown = set()

    def call(query, *parameters):
        rows = conn.execute(query, parameters).fetchall()
        shown.update(str(value) for row in rows for value in row if isinstance(value, str))
        shown.update(str(value) for value in parameters)
        return rows

    conn.execute("SET totp.audit_success = on")
    [[secret, uri]] = call("SELECT * FROM totp_enroll('alice')")
    for image in ("totp_qr_svg", "totp_qr_text", "totp_qr_png"):
        conn.execute(f"SELECT {image}(%s)", [uri])
    codes = [code_at(secret, when) for when in (EARLIER, NOON, LATER)]
    call("SELECT totp_confirm('alice', %s)", codes[0])
    call("SELECT totp_verify('alice', %s)", codes[1])
    call("SELECT accepted FROM totp_check('alice', %s)", codes[1])
    call("SELECT totp_code_at(%s, '2030-01-01 12:00Z')", secret)
    used, proof, *_ = [code for [code] in call("SELECT totp_recovery_codes('alice', proof => %s)", codes[2])]
    for code in (used, used, NO_CODE):
        call("SELECT totp_recover('alice', %s)", code)
    call("SELECT accepted FROM totp_check_recover('alice', %s)", NO_CODE)
    for _ in range(MAX_ATTEMPTS + 1):
        call("SELECT totp_verify('alice', %s)", next(wrong_codes(secret, NOON)))
        call("SELECT totp_recover('alice', %s)", NO_CODE)
    conn.execute("SELECT totp_unlock('alice')")
    [[staged, _]] = call("SELECT * FROM totp_enroll('alice', 'alice@example.com', 'Example')")
    call("SELECT accepted FROM totp_check_confirm('alice', %s, proof => %s)", next(wrong_codes(staged, NOON)), proof)
    call("SELECT unnest(recovery_codes) FROM totp_check_confirm('alice', %s, proof => %s, recovery_codes => 3)", code_at(staged, NOON), proof)
    call("SELECT totp_rename_device('alice', 'default', 'phone', %s)", code_at(staged, LATER))
    call("SELECT totp_rename_device('alice', 'phone', 'default', %s)", [code for [code] in call("SELECT totp_reset_recovery_codes('alice', 1)")][0])
    [[after_reset, _]] = call("SELECT * FROM totp_reset('alice')")
    call("SELECT totp_verify('alice', %s)", code_at(after_reset, NOON))
    call("SELECT totp_import('alice', %s, device => 'tablet')", secret_of("tablet"))
    conn.execute("SELECT totp_move_device('alice', 'tablet', 'dave', 'tablet')")
    call("SELECT totp_import('carol', %s, confirmed => true)", secret_of("carol"))
    call("SELECT totp_resync('carol', %s, %s)", *[code_at(secret_of("carol"), NOON.timestamp() + 30 * step) for step in (4, 5)])
    call("SELECT totp_reset_recovery_codes('carol')")
    conn.execute("SELECT totp_remove('carol', 'default')")
    [[of_carol, _]] = call("SELECT * FROM totp_enroll('carol')")
    call("SELECT totp_verify('carol', %s)", code_at(of_carol, NOON))
    call("SELECT totp_unenroll('carol', %s)", code_at(of_carol, LATER))
    call("SELECT totp_import('bob', %s, confirmed => true)", f"otpauth://totp/Old:bob?secret={secret_of('bob')}&issuer=Old")
    conn.execute("SELECT totp_disable('alice', 'default')")
    call("SELECT totp_import('alice', %s, device => 'spare', confirmed => true)", secret_of("spare"))
    call("SELECT totp_verify('alice', %s)", code_at(after_reset, NOON))
    conn.execute("SELECT totp_remove('alice', 'spare')")
    conn.execute("SELECT totp_enable('alice')")
    conn.execute("SELECT totp_rename_user('alice', 'alicia')")
    conn.execute("SELECT totp_grant('pg_monitor', 'verify'), totp_revoke('pg_monitor', 'verify')")
    conn.execute("SELECT totp_rotate_key()")
    conn.execute("CALL totp_rotate_key_online()")
    call("SELECT otpauth_uri FROM totp_export()")
    for query in ("totp_health()", "totp_health(true)", "totp_list()", "totp_acknowledge_restore()", "totp_stats()", "totp_metrics()", "totp_audit_verify()", "totp_keys()", "totp_status('alicia')", "totp_enabled('alicia')"):
        conn.execute(f"SELECT * FROM {query}")
    # What is refused with an error, with secrets and codes in its arguments.
    for query, *parameters in [("SELECT totp_import('bob', %s, device => 'other')", secret_of("bob")), ("SELECT totp_import('x', %s)", "otpauth://totp/a?secret=NOT!BASE32"),
                               ("SELECT totp_import(%s, %s, digits => 5)", "x", secret_of("tablet")), ("SELECT totp_qr_text(%s)", f"otpauth://totp/{'a' * 5000}?secret={secret}")]:
        shown.update(parameters)
        error_of(conn, query, parameters)
    # A secret that was tampered with.
    conn.execute("UPDATE totp.secrets SET sealed = set_byte(sealed, 40, get_byte(sealed, 40) # 1) WHERE user_id = 'bob'")
    for function in ("totp_verify", "totp_check"):
        shown.add(code_at(secret_of("bob"), NOON))
        assert error_of(conn, f"SELECT {function}('bob', %s)", [code_at(secret_of("bob"), NOON)]).sqlstate == "XX001"
    conn.execute("SELECT totp_remove('alicia')")
    conn.execute("SELECT totp_prune_audit('1 year')")
    return {text for text in shown if len(text) >= 6}
