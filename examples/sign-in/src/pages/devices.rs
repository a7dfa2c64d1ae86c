//! The devices of who is signed in. The first page.

use super::*;

pub async fn show(State(app): State<App>, visitor: Visitor) -> Answer {
    let session = visitor.full()?;
    let query = "SELECT device, CASE WHEN state = 'disabled' THEN 'blocked' WHEN state = 'active' THEN 'in use'
                                     WHEN approved THEN 'waits for its first code' ELSE 'setup not finished' END,
                        coalesce(to_char(last_used_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI \"UTC\"'), 'never'),
                        recovery_codes_left
                   FROM mfa.totp_status($1) ORDER BY device, version";
    let devices = app.rows(query, &[&session.member]).await?;
    let change = |device| button_to("/device", device, "Change");
    let rows = html! {
        @for device in &devices {
            @let [name, state, last_use]: [&str; 3] = [0, 1, 2].map(|i| device.get(i));
            tr { th scope="row" { (name) } td { (state) } td { (last_use) } td { (change(name)) } }
        }
    };
    let content = html! {
        p { "You are signed in as " strong { (session.member) } "." }
        (table(["Device", "State", "Last use", "Change"], rows))
        p { a href="/enroll" { "Add a device" } }
        @if let Some(device) = devices.first() {
            p { (device.get::<_, i32>(3)) " recovery codes are left. " a href="/recovery-codes" { "Make new ones" } }
        }
    };
    Ok(page("Your devices", &session, &None, content))
}
