//! The devices of who is signed in. The first page.

use super::*;

pub async fn show(State(app): State<App>, visitor: Visitor) -> Answer {
    let session = visitor.full()?;
    let query = "SELECT device, CASE WHEN state = 'disabled' THEN 'blocked' WHEN state = 'active' THEN 'in use'
                                     WHEN approved THEN 'waits for its first code' ELSE 'setup not finished' END,
                        coalesce(to_char(last_used_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI \"UTC\"'), 'never'), recovery_codes_left
                   FROM mfa.totp_status($1) ORDER BY device, version";
    let devices = app.web.get().await?.query(query, &[&session.member]).await?;
    let content = html! {
        p { "You are signed in as " strong { (session.member) } "." }
        table {
            tr { th scope="col" { "Device" } th scope="col" { "State" } th scope="col" { "Last use" } th scope="col" { "Change" } }
            @for device in &devices {
                @let name: &str = device.get(0);
                tr {
                    th scope="row" { (name) } td { (device.get::<_, &str>(1)) } td { (device.get::<_, &str>(2)) }
                    td { form action="/device" { input type="hidden" name="device" value=(name); button { "Change " (name) } } }
                }
            }
        }
        p { a href="/enroll" { "Add a device" } }
        @if let Some(device) = devices.first() {
            p { (device.get::<_, i32>(3)) " recovery codes are left. " a href="/recovery-codes" { "Make new ones" } }
        }
    };
    Ok(ok("Your devices", &session, content))
}
