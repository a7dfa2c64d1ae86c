//! `totp.audit_log`.

use super::spi::{Arg, int8, statement, text};
use pgrx::IntoDatum;

use crate::clock::Timestamp;
use crate::error::Error;

statement!(writes INSERT(TIMESTAMPTZOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTARRAYOID), c"
INSERT INTO totp.audit_log (at, event, user_id, device, actor, db_user, client_addr, application_name, detail)
VALUES ($1, $2, $3, $4, coalesce($5, session_user::text), session_user, pg_catalog.inet_client_addr(),
        pg_catalog.current_setting('application_name'), pg_catalog.jsonb_object($6))");

/// Name, value, name, value; NULL where there is none.
fn text_array(detail: &[(&str, &str)]) -> Arg {
    let flat: Vec<&str> = detail.iter().flat_map(|(key, value)| [*key, *value]).collect();
    if flat.is_empty() { None } else { flat.into_datum() }
}

/// Appends a row. The session supplies who and from where; `actor` None is the session user.
pub fn insert(
    event: &str,
    at: Timestamp,
    user_id: Option<&str>,
    device: Option<&str>,
    actor: Option<&str>,
    detail: &[(&str, &str)],
) -> Result<(), Error> {
    INSERT.with(|s| {
        s.change_one(&[
            int8(at.0),
            text(event),
            user_id.and_then(text),
            device.and_then(text),
            actor.and_then(text),
            text_array(detail),
        ])
    })
}
