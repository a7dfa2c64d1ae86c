//! `totp.audit_log`.

use super::spi::{int8, statement, text};
use crate::clock::Timestamp;
use crate::error::Error;

statement!(writes INSERT(TIMESTAMPTZOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID), c"
INSERT INTO totp.audit_log (at, event, user_id, device, actor, db_user, client_addr, application_name, detail)
VALUES ($1, $2, $3, $4, coalesce($5, session_user::text), session_user, pg_catalog.inet_client_addr(),
        pg_catalog.current_setting('application_name'), $6::jsonb)");

/// Appends a row. The session supplies who and from where; `actor` None is the session user.
pub fn insert(
    event: &str,
    at: Timestamp,
    user_id: Option<&str>,
    device: Option<&str>,
    actor: Option<&str>,
    detail: Option<&str>,
) -> Result<(), Error> {
    INSERT.with(|s| {
        s.change_one(&[
            int8(at.0),
            text(event),
            user_id.and_then(text),
            device.and_then(text),
            actor.and_then(text),
            detail.and_then(text),
        ])
    })
}
