//! The desk resets a device, for a user who has no other way. Its codes stop working at once: who still has the device
//! replaces it (enroll.rs), since there the old codes work until the new device does.

use super::*;

pub async fn ask(State(app): State<App>, visitor: Visitor, Path(member): Member, Query(asked): Query<Typed>) -> Answer {
    let session = visitor.desk()?;
    may_be_reset(&app, &session, &member, &asked.device).await?;
    Ok(show(&session, &member, &asked, &None))
}

pub async fn reset(State(app): State<App>, visitor: Visitor, Path(member): Member, Form(typed): Form<Typed>) -> Answer {
    let session = visitor.desk()?;
    may_be_reset(&app, &session, &member, &typed.device).await?;
    let wrong = match typed.sure.is_empty() {
        true => Some(Wrong::new("Make sure who asks. Nothing was done.", &[])),
        false => fresh::check(&app, &session, &typed).await?,
    };
    if wrong.is_some() {
        return Ok(show(&session, &member, &typed, &wrong));
    }
    let mut db = desk::role(&app).await?;
    let tx = db.transaction().await?;
    desk::act_as(&tx, &session).await?;
    tx.execute("DELETE FROM app.session WHERE member = $1", &[&member]).await?; // in the order of Token::lock_all
    let query = "SELECT *, mfa.totp_qr_svg(otpauth_uri) AS svg FROM mfa.totp_reset($1, $2)";
    let new = tx.query_one(query, &[&member, &typed.device]).await?;
    let query = "SELECT mfa.totp_reset_recovery_codes($1) WHERE $2 <> ''";
    let codes = tx.query(query, &[&member, &typed.new_codes]).await?;
    tx.commit().await?; // only now is there the secret that the page shows

    let content = html! {
        p { "The old codes have stopped working, and " (member) " is signed out everywhere." }
        p { "Give this to " (member) " in person. They sign in with a code of the new device within an hour." }
        (enroll::scan(&new))
        @if !codes.is_empty() {
            h2 { "New recovery codes" }
            (layout::codes(codes.iter().map(|row| row.get(0)).collect()))
        }
        p { a href={ "/desk/" (member) } { "Done" } }
    };
    Ok(page(&format!("{} of {member} was reset", typed.device), &session, &None, content))
}

async fn may_be_reset(app: &App, session: &Session, member: &str, device: &str) -> Result<(), Failure> {
    desk::must_be_another(app, session, member).await?;
    let query = "SELECT bool_or(state = 'disabled') FROM mfa.totp_status($1) WHERE device = $2";
    match app.one(query, &[&member, &device]).await?.get(0) {
        None => Err(Failure::NotFound),
        Some(true) => Err(Failure::refused(DISABLED)),
        Some(false) => Ok(()),
    }
}

const DISABLED: &str = "This device is disabled, and a reset would not change that. \
                        An administrator of the database enables it with totp_enable.";

fn show(session: &Session, member: &str, typed: &Typed, wrong: &Option<Wrong>) -> Response {
    let device = &typed.device;
    let new_list = "Make new recovery codes, too: someone may have the old list";
    let content = html! {
        p .warning { "Warning: the codes that " (device) " of " (member) " shows stop working at once." }
        p { (member) " cannot sign in with it until they have the new secret, which is good for an hour." }
        p { "If they still have the device, cancel: they replace it themselves, and its codes work meanwhile." }
        form method="post" {
            input type="hidden" name="device" value=(device);
            label { input type="checkbox" name="sure" required; "I have made sure that it is " (member) " who asks" }
            label { input type="checkbox" name="new_codes" checked[!typed.new_codes.is_empty()]; (new_list) }
            (fresh::fields(wrong))
            button { "Reset " (device) " of " (member) }
        }
        p { a href={ "/desk/" (member) } { "Cancel" } }
    };
    page(&format!("Reset {device} of {member}?"), session, wrong, content)
}
