//! The help desk: who has which devices, who is locked, and what happened. It has a role of its own in the database.

use deadpool_postgres::{Object, Transaction};
use tokio_postgres::Row;

use super::*;

const USERS_OF_A_PAGE: i32 = 20;

/// A connection of the desk's role. Without that role there are no routes to these pages.
pub async fn role(app: &App) -> Result<Object, Failure> {
    Ok(app.desk.as_ref().ok_or(Failure::NotFound)?.get().await?)
}

/// Who acts, for the audit log, until the transaction ends.
pub async fn act_as(tx: &Transaction<'_>, who: &Session) -> Result<Row, Failure> {
    Ok(tx.query_one("SELECT set_config('totp.actor', $1, true)", &[&format!("desk:{}", who.member)]).await?)
}

/// Of two who work at the desk, each acts for the other.
pub async fn must_be_another(app: &App, session: &Session, member: &str) -> Result<(), Failure> {
    if member == session.member {
        return Err(Failure::refused("Nobody unlocks or resets themselves. Ask a colleague."));
    }
    app.must_have("SELECT FROM app.member WHERE name = $1", &[&member]).await
}

pub async fn list(State(app): State<App>, visitor: Visitor, Query(asked): Query<Typed>) -> Answer {
    let session = visitor.desk()?;
    let query = "SELECT user_id, device, state, CASE WHEN locked THEN coalesce('until ' ||
                        to_char(locked_until AT TIME ZONE 'UTC', 'HH24:MI:SS \"UTC\"'), 'until you unlock') ELSE '' END
                   FROM mfa.totp_list(nullif($1, ''), $2, $3)";
    let prefix = asked.prefix.trim().to_lowercase();
    let devices = role(&app).await?.query(query, &[&asked.after, &USERS_OF_A_PAGE, &prefix]).await?;
    let mut users: Vec<&str> = devices.iter().map(|row| row.get(0)).collect();
    users.dedup();
    let rows = html! {
        @for device in &devices {
            @let [user, device, state, locked]: [&str; 4] = [0, 1, 2, 3].map(|i| device.get(i));
            @let link = html! { a href={ "/desk/" (user) } { (user) } };
            tr { th scope="row" { (link) } td { (device) } td { (state) } td { (locked) } }
        }
    };
    let content = html! {
        form action="/desk" role="search" {
            label for="prefix" { "User name begins with" }
            input #prefix name="prefix" type="text" value=(prefix) autocapitalize="none" autocomplete="off";
            button { "Search" }
        }
        (table(["User", "Device", "State", "Locked"], rows))
        @if users.len() as i32 == USERS_OF_A_PAGE {
            form action="/desk" {
                input type="hidden" name="prefix" value=(prefix);
                input type="hidden" name="after" value=(users[users.len() - 1]);
                button { "Next page" }
            }
        } @else { p { "No more users." } }
    };
    Ok(page("Help desk", &session, &None, content))
}

pub async fn show(State(app): State<App>, visitor: Visitor, Path(member): Member) -> Answer {
    let session = visitor.desk()?;
    app.must_have("SELECT FROM app.member WHERE name = $1", &[&member]).await?;
    let db = role(&app).await?;
    let devices = db.query("SELECT * FROM mfa.totp_status($1) ORDER BY device, version", &[&member]).await?;
    let query = "SELECT to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS'), event, coalesce(device, ''), actor
                   FROM totp.audit_log WHERE user_id = $1 ORDER BY at DESC, id DESC LIMIT 20";
    let events = db.query(query, &[&member]).await?;
    let rows = html! {
        @for event in &events { tr { @for i in 0..4 { td { (event.get::<_, &str>(i)) } } } }
    };
    let content = html! {
        @if let Some(user) = devices.first() {
            p {
                (user.get::<_, i32>("failures")) " wrong codes in a row. "
                (user.get::<_, i32>("recovery_codes_left")) " recovery codes left. "
                @if user.get("locked") { "Codes are locked. " }
                @if user.get("recovery_locked") { "Recovery codes are locked." }
            }
            form action={ "/desk/" (member) "/unlock" } { button { "Unlock" } }
        }
        h2 { "Devices" }
        ul {
            @for device in &devices {
                @let [name, state]: [&str; 2] = ["device", "state"].map(|column| device.get(column));
                li { (name) ", " (state) (button_to(&format!("/desk/{member}/reset"), name, "Reset")) }
            }
        }
        h2 { "What happened" }
        (table(["When, UTC", "Event", "Device", "Who"], rows))
    };
    Ok(page(&format!("User {member}"), &session, &None, content))
}
