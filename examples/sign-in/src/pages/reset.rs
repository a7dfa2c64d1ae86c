//! The desk resets a device, for a user who has no other way. Its codes stop working at once: who still has the device
//! replaces it (enroll.rs), since there the old codes work until the new device does.
//!
//! The form asks for password and code of the desk again: a session that somebody left open resets nothing.

use super::*;

#[derive(Deserialize)]
pub struct Typed {
    device: String,
    password: String,
    code: String,
    sure: Option<String>,
    new_codes: Option<String>,
}

pub async fn ask(visitor: Visitor, Path(member): Path<String>, Query(named): Query<Named>) -> Answer {
    Ok(show(&visitor.desk()?, &member, &named.device, false, None))
}

pub async fn reset(
    State(app): State<App>,
    visitor: Visitor,
    Path(member): Path<String>,
    Form(typed): Form<Typed>,
) -> Answer {
    let session = visitor.desk()?;
    let refuse =
        |error: &str| -> Answer { Ok(show(&session, &member, &typed.device, typed.new_codes.is_some(), Some(error))) };
    if member == session.member {
        return refuse("Nobody resets their own device. Ask a colleague, or replace it.");
    }
    if typed.sure.is_none() {
        return refuse("Make sure who asks. Nothing was reset.");
    }
    let db = app.web.get().await?;
    let hash = db.query_one("SELECT password FROM app.member WHERE name = $1", &[&session.member]).await?.get(0);
    if !password::is_right(&app, typed.password, hash).await {
        return refuse("Your password is wrong. Nothing was reset.");
    }
    let query = "SELECT accepted, reason, attempts_left, retry_after FROM mfa.totp_check($1, $2)";
    let judged = Judged::from(&db.query_one(query, &[&session.member, &typed.code]).await?);
    if judged.reason == "replayed" {
        return refuse(
            "Your code was used already. If you have clicked twice, the device was reset by the first click: \
                       reset it again with your next code, to see the new secret.",
        );
    } else if !judged.accepted {
        return refuse(&format!("{} Nothing was reset.", judged.in_words()));
    }

    let mut db = desk::role(&app).await?;
    let tx = db.transaction().await?;
    desk::act_as(&tx, &session).await?;
    tx.execute("DELETE FROM app.session WHERE member = $1", &[&member]).await?; // in the order of session::lock_all
    let query =
        "SELECT r.secret, r.otpauth_uri, mfa.totp_qr_svg(r.otpauth_uri) AS svg FROM mfa.totp_reset($1, $2) AS r";
    let new = tx.query_one(query, &[&member, &typed.device]).await?;
    let codes = match typed.new_codes {
        Some(_) => tx.query("SELECT code FROM mfa.totp_reset_recovery_codes($1) AS code", &[&member]).await?,
        None => Vec::new(),
    };
    tx.commit().await?; // only now is there the secret that the page shows

    let content = html! {
        p { "The old codes have stopped working, and " (member) " is signed out everywhere. Give this to " (member)
            " in person. They sign in with their password and a code of the new device, which confirms it, within an hour." }
        (enroll::scan(&new))
        @if !codes.is_empty() {
            h2 { "New recovery codes" }
            ol .codes { @for code in &codes { li { (code.get::<_, &str>(0)) } } }
        }
        p { a href={ "/desk/" (member) } { "Done" } }
    };
    Ok(ok(&format!("{} of {member} was reset", typed.device), &session, content))
}

fn show(session: &Session, member: &str, device: &str, new_codes: bool, error: Option<&str>) -> Response {
    let wrong = error.is_some();
    let password =
        Field { name: "password", label: "Your password", hint: "", fills: "current-password", first: wrong, wrong };
    let (label, hint) = ("A code of your own device", "One that you have not used yet.");
    let code = Field { name: "code", label, hint, fills: "one-time-code", first: false, wrong };
    let content = html! {
        p .warning { "Warning: the codes that " (device) " of " (member) " shows stop working at once. " (member)
            " cannot sign in with it until they have the new secret, which is good for an hour." }
        p { "Does " (member) " still have the device? Then cancel: they replace it themselves, and its codes work meanwhile." }
        form method="post" {
            input type="hidden" name="device" value=(device);
            label { input type="checkbox" name="sure" required; "I have made sure that it is " (member) " who asks" }
            label { input type="checkbox" name="new_codes" checked[new_codes]; "Make new recovery codes, too: someone may have the old list" }
            (password.password()) (code.digits())
            button { "Reset " (device) " of " (member) }
        }
        p { a href={ "/desk/" (member) } { "Cancel" } }
    };
    form(&format!("Reset {device} of {member}?"), session, error, content)
}
