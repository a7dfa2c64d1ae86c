-- A comment for every table, column, and sequence. The comments of the functions are in rights.sql.

COMMENT ON SCHEMA totp IS 'Tables of extension pg_totp; use its functions, not the tables';
COMMENT ON SEQUENCE totp.key_ids IS 'Numbers the data keys';
COMMENT ON SEQUENCE totp.secret_ids IS 'Numbers the secrets and the sets of recovery codes';
COMMENT ON SEQUENCE totp.audit_ids IS 'Numbers the audit rows';

COMMENT ON TABLE totp.data_keys IS 'Data keys, wrapped by a master key that is never in the database';
COMMENT ON COLUMN totp.data_keys.key_id IS 'Number of the key, part of every value sealed under it';
COMMENT ON COLUMN totp.data_keys.state IS 'current: seals new secrets; retiring: a rotation is moving its secrets to the current key';
COMMENT ON COLUMN totp.data_keys.master_key IS 'Fingerprint of the master key that wraps it';
COMMENT ON COLUMN totp.data_keys.wrapped IS 'The key, encrypted and authenticated under the master key';
COMMENT ON COLUMN totp.data_keys.created_at IS 'When the key was created';

COMMENT ON TABLE totp.secrets IS 'TOTP secrets, sealed; at most one per device and slot';
COMMENT ON COLUMN totp.secrets.user_id IS 'Id of the user in the application, compared byte by byte';
COMMENT ON COLUMN totp.secrets.device IS 'Name of the authenticator';
COMMENT ON COLUMN totp.secrets.slot IS 'active: signs in; pending: approved, becomes active with its first good code; proposed: that may need a proof too';
COMMENT ON COLUMN totp.secrets.secret_id IS 'Number of the secret, never reused';
COMMENT ON COLUMN totp.secrets.version IS 'How many secrets this device has had';
COMMENT ON COLUMN totp.secrets.key_id IS 'Data key that seals it';
COMMENT ON COLUMN totp.secrets.sealed IS 'The secret, encrypted and bound to user, device, secret_id and parameters';
COMMENT ON COLUMN totp.secrets.algorithm IS 'SHA1, SHA256, or SHA512';
COMMENT ON COLUMN totp.secrets.digits IS 'Length of its codes: 6, 7, or 8';
COMMENT ON COLUMN totp.secrets.period IS 'Length of a time step in seconds';
COMMENT ON COLUMN totp.secrets.issuer IS 'Issuer in its otpauth URI';
COMMENT ON COLUMN totp.secrets.account_name IS 'Account name in its otpauth URI';
COMMENT ON COLUMN totp.secrets.created_at IS 'When the secret was created or imported';
COMMENT ON COLUMN totp.secrets.confirmed_at IS 'When its first good code made it active';
COMMENT ON COLUMN totp.secrets.enforced_since IS 'When the device was first confirmed: from then on totp_enabled() is true';
COMMENT ON COLUMN totp.secrets.expires_at IS 'When the pending secret expires';
COMMENT ON COLUMN totp.secrets.disabled_at IS 'When the device was disabled';

COMMENT ON TABLE totp.used_codes IS 'Last used time step of each secret and used codes of each recovery set; changed in place, never UPDATE it';
COMMENT ON COLUMN totp.used_codes.time_step IS 'Highest time step whose code was accepted';
COMMENT ON COLUMN totp.used_codes.used_at IS 'When the last code was accepted; -infinity: never';
COMMENT ON COLUMN totp.used_codes.uses IS 'How many codes were accepted';
COMMENT ON COLUMN totp.used_codes.recovery_mask IS 'Bit n is set if recovery code n of the set is used; of a secret, the drift of its token';
COMMENT ON COLUMN totp.used_codes.secret_id IS 'Number of the secret or of the set of recovery codes';
COMMENT ON COLUMN totp.used_codes.user_id IS 'Id of the user';

COMMENT ON TABLE totp.attempts IS 'Failures and locks of each user; changed in place, never UPDATE it';
COMMENT ON COLUMN totp.attempts.locked_until IS 'Codes are refused until then; -infinity: not locked, infinity: until totp_unlock()';
COMMENT ON COLUMN totp.attempts.recovery_locked_until IS 'The same for recovery codes';
COMMENT ON COLUMN totp.attempts.last_failed_at IS 'When the last wrong code was given; -infinity: never';
COMMENT ON COLUMN totp.attempts.failures IS 'Wrong codes since the last good one';
COMMENT ON COLUMN totp.attempts.recovery_failures IS 'Wrong recovery codes since the last good one';
COMMENT ON COLUMN totp.attempts.user_id IS 'Id of the user';

COMMENT ON TABLE totp.recovery_codes IS 'Recovery codes of each user, as sealed hashes';
COMMENT ON COLUMN totp.recovery_codes.user_id IS 'Id of the user';
COMMENT ON COLUMN totp.recovery_codes.set_id IS 'Number of the set, from the same sequence as the secrets';
COMMENT ON COLUMN totp.recovery_codes.count IS 'How many codes the set has';
COMMENT ON COLUMN totp.recovery_codes.key_id IS 'Data key that seals it';
COMMENT ON COLUMN totp.recovery_codes.sealed IS 'SHA-256 hashes of the codes, encrypted and bound to user and set';
COMMENT ON COLUMN totp.recovery_codes.created_at IS 'When the set was created';

COMMENT ON TABLE totp.floor IS 'Cluster that last checked a code, and since when; changed in place, never UPDATE it';
COMMENT ON COLUMN totp.floor.floor_at IS 'Codes from before this time may have been used in WAL that was lost';
COMMENT ON COLUMN totp.floor.system_identifier IS 'System identifier of the cluster';
COMMENT ON COLUMN totp.floor.control_inode IS 'Inodes and times of global/pg_control and backup_label.old, combined; differs in a copy of the data directory';
COMMENT ON COLUMN totp.floor.database IS 'OID of the database';
COMMENT ON COLUMN totp.floor.timeline IS 'Timeline of the WAL; negative until totp_acknowledge_restore() if there were recovery codes';
COMMENT ON COLUMN totp.floor.one IS 'Limits the table to one row';

COMMENT ON TABLE totp.counters IS 'Sums of judged codes, which outlive ROLLBACK; changed in place, never UPDATE it';
COMMENT ON COLUMN totp.counters.accepted IS 'Codes that were accepted';
COMMENT ON COLUMN totp.counters.wrong IS 'Wrong codes and wrong recovery codes';
COMMENT ON COLUMN totp.counters.replayed IS 'Codes and recovery codes that were used before';
COMMENT ON COLUMN totp.counters.locked IS 'Calls that were refused because of a lock';
COMMENT ON COLUMN totp.counters.recovery_codes_used IS 'Recovery codes that were accepted';
COMMENT ON COLUMN totp.counters.stripe IS 'Number of the row; a session adds to one, a sum over all rows is the counter';
COMMENT ON COLUMN totp.counters.padding IS 'Blanks, so that each row has its own page';

COMMENT ON TABLE totp.audit_log IS 'Event, user, and actor of everything that happened; append-only for all but the owner';
COMMENT ON COLUMN totp.audit_log.id IS 'Number of the row';
COMMENT ON COLUMN totp.audit_log.at IS 'When it happened';
COMMENT ON COLUMN totp.audit_log.event IS 'Name of the event, such as enrolled, failed, or locked';
COMMENT ON COLUMN totp.audit_log.user_id IS 'Id of the affected user';
COMMENT ON COLUMN totp.audit_log.device IS 'Name of the affected device';
COMMENT ON COLUMN totp.audit_log.actor IS 'Who did it: totp.actor, or else the session user';
COMMENT ON COLUMN totp.audit_log.db_user IS 'The session user';
COMMENT ON COLUMN totp.audit_log.client_addr IS 'Address of the client; NULL on a unix socket';
COMMENT ON COLUMN totp.audit_log.application_name IS 'application_name of the session';
COMMENT ON COLUMN totp.audit_log.detail IS 'Details of the event; never a code, secret, URI, or key';

COMMENT ON TABLE totp.audit_keys IS 'Keys that seal the audit trail, wrapped by a master key';
COMMENT ON COLUMN totp.audit_keys.key_id IS 'Number of the key, from the same sequence as the data keys';
COMMENT ON COLUMN totp.audit_keys.master_key IS 'Fingerprint of the master key that wraps it';
COMMENT ON COLUMN totp.audit_keys.wrapped IS 'The key, encrypted';
COMMENT ON COLUMN totp.audit_keys.created_at IS 'When the key was created';

COMMENT ON TABLE totp.audit_seals IS 'Seals of the audit trail; check them with totp_audit_verify()';
COMMENT ON COLUMN totp.audit_seals.seal_id IS 'Number of the seal, without a gap';
COMMENT ON COLUMN totp.audit_seals.first_id IS 'First id of its range, which follows that of the seal before';
COMMENT ON COLUMN totp.audit_seals.last_id IS 'Last id of its range';
COMMENT ON COLUMN totp.audit_seals.row_count IS 'How many rows it covers';
COMMENT ON COLUMN totp.audit_seals.newest_at IS 'When the latest of these rows happened';
COMMENT ON COLUMN totp.audit_seals.rows_mac IS 'HMAC-SHA-256 over these rows';
COMMENT ON COLUMN totp.audit_seals.holes IS 'Ids of its range that no row had';
COMMENT ON COLUMN totp.audit_seals.late IS 'Rows in holes of earlier seals that were committed since, and are covered by this one';
COMMENT ON COLUMN totp.audit_seals.closed_seal IS 'No transaction can fill a hole of seals up to this one any more';
COMMENT ON COLUMN totp.audit_seals.pruned_seal IS 'Rows of seals up to this one were deleted by totp_prune_audit()';
COMMENT ON COLUMN totp.audit_seals.next_xid IS 'Transactions that were writing audit rows have lower ids; NULL: not known';
COMMENT ON COLUMN totp.audit_seals.system_identifier IS 'System identifier of the cluster';
COMMENT ON COLUMN totp.audit_seals.database IS 'OID of the database';
COMMENT ON COLUMN totp.audit_seals.timeline IS 'Timeline of the WAL';
COMMENT ON COLUMN totp.audit_seals.key_id IS 'Key of totp.audit_keys';
COMMENT ON COLUMN totp.audit_seals.sealed_at IS 'When it was made';
COMMENT ON COLUMN totp.audit_seals.previous_mac IS 'The MAC of the seal before';
COMMENT ON COLUMN totp.audit_seals.mac IS 'HMAC-SHA-256 over all other columns';
