"""Which capability may call which function."""

# Every function, a call of it that is harmless, and the least capability that may make it. "owner": nobody but the owner.
# The order of the capabilities is not one of rank: see ALLOWED in security/test_capabilities.py.
FUNCTIONS = {
    "totp_verify": ("SELECT totp_verify('nobody', '123456')", "verify"),
    "totp_check": ("SELECT * FROM totp_check('nobody', '123456')", "verify"),
    "totp_recover": ("SELECT totp_recover('nobody', 'abcdef')", "verify"),
    "totp_check_recover": ("SELECT * FROM totp_check_recover('nobody', 'abcdef')", "verify"),
    "totp_enabled": ("SELECT totp_enabled('nobody')", "verify"),
    "totp_status": ("SELECT * FROM totp_status('nobody')", "verify"),
    "totp_enroll": ("SELECT * FROM totp_enroll('someone')", "enroll"),
    "totp_confirm": ("SELECT totp_confirm('nobody', '123456')", "enroll"),
    "totp_check_confirm": ("SELECT * FROM totp_check_confirm('nobody', '123456')", "enroll"),
    "totp_recovery_codes": ("SELECT * FROM totp_recovery_codes('nobody')", "enroll"),
    "totp_unenroll": ("SELECT totp_unenroll('nobody', '123456')", "enroll"),
    "totp_resync": ("SELECT totp_resync('nobody', '123456', '654321')", "enroll"),
    "totp_rename_device": ("SELECT totp_rename_device('nobody', 'default', 'phone', '123456')", "enroll"),
    "totp_qr_svg": ("SELECT totp_qr_svg('otpauth://totp/a?secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ')", "enroll"),
    "totp_qr_png": ("SELECT totp_qr_png('otpauth://totp/a?secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ')", "enroll"),
    "totp_qr_text": ("SELECT totp_qr_text('otpauth://totp/a?secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ')", "enroll"),
    "totp_import": ("SELECT totp_import('someone', 'GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ')", "admin"),
    "totp_read_tokens": ("SELECT * FROM totp_read_tokens('<KeyContainer/>')", "admin"),
    "totp_reset": ("SELECT * FROM totp_reset('nobody')", "admin"),
    "totp_reset_recovery_codes": ("SELECT * FROM totp_reset_recovery_codes('nobody')", "admin"),
    "totp_move_device": ("SELECT totp_move_device('nobody', 'default', 'noone', 'default')", "admin"),
    "totp_disable": ("SELECT totp_disable('nobody')", "admin"),
    "totp_enable": ("SELECT totp_enable('nobody')", "admin"),
    "totp_remove": ("SELECT totp_remove('nobody')", "admin"),
    "totp_unlock": ("SELECT totp_unlock('nobody')", "admin"),
    "totp_rename_user": ("SELECT totp_rename_user('nobody', 'noone')", "admin"),
    "totp_rotate_key": ("SELECT * FROM totp_rotate_key()", "admin"),
    "totp_rotate_key_online": ("CALL totp_rotate_key_online()", "admin"),
    "totp_keys": ("SELECT * FROM totp_keys()", "audit"),
    "totp_health": ("SELECT * FROM totp_health()", "admin"),
    "totp_list": ("SELECT * FROM totp_list()", "admin"),
    "totp_code_at": ("SELECT totp_code_at('GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ', '2030-01-01')", "admin"),
    "totp_stats": ("SELECT * FROM totp_stats()", "audit"),
    "totp_metrics": ("SELECT * FROM totp_metrics()", "audit"),
    "totp_audit_verify": ("SELECT * FROM totp_audit_verify()", "audit"),
    "totp_audit_seal": ("CALL totp_audit_seal()", "owner"),
    "totp_forget_unreadable": ("SELECT * FROM totp_forget_unreadable('0123456789abcdef')", "owner"),
    "totp_prune_audit": ("SELECT totp_prune_audit('1 year')", "owner"),
    "totp_acknowledge_restore": ("SELECT totp_acknowledge_restore()", "owner"),
    "totp_grant": ("SELECT totp_grant('postgres', 'verify')", "owner"),
    "totp_revoke": ("SELECT totp_revoke('pg_monitor', 'verify')", "owner"),
    "totp_export": ("SELECT * FROM totp_export()", "owner"),
}
# Helpers of other functions: who may call those may call these, and they do nothing else.
HELPERS = {
    "rotation_begin": "admin", "rotation_step": "admin", "rotation_end": "admin",
    "reseal": "owner", "reseal_recovery_codes": "owner", "seal_step": "owner", "seal_line": "owner", "routines_of": "owner", "record_right": "owner",
}

# The functions that the extension made in a database.
OURS = """
SELECT p.proname FROM pg_proc p
  JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
  JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND e.extname = 'pg_totp'"""
