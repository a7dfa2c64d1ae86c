//! The desk resets a device, for a user who has no other way. Its codes stop working at once: who still has the device
//! replaces it (enroll.rs), since there the old codes work until the new device does.
//!
//! The form asks for password and code of the desk again: a session that somebody left open resets nothing.

use super::*;

pub async fn ask(visitor: Visitor, Path(member): Path<String>, Query(asked): Query<Typed>) -> Answer {
    Ok(show(&visitor.desk()?, &member, &asked.device, false, &None))
}

type Member = Path<String>;

pub async fn reset(State(app): State<App>, visitor: Visitor, member: Member, Form(typed): Form<Typed>) -> Answer {
    let (session, Path(member)) = (visitor.desk()?, member);
    let refuse = |wrong: Wrong| -> Answer {
        Ok(show(&session, &member, &typed.device, !typed.new_codes.is_empty(), &Some(wrong)))
    };
    if member == session.member {
        return refuse(Wrong::new("Nobody resets their own device. Ask a colleague, or replace it.", &[]));
    }
    if typed.sure.is_empty() {
        return refuse(Wrong::new("Make sure who asks. Nothing was reset.", &[]));
    }
    let hash = app.one("SELECT password FROM app.member WHERE name = $1", &[&session.member]).await?.get(0);
    if !password::is_right(&app, typed.password, hash).await {
        return refuse(Wrong::new("Your password is wrong. Nothing was reset.", &["password"]));
    }
    let row = app.one("SELECT * FROM mfa.totp_check($1, $2)", &[&session.member, &typed.code]).await?;
    if row.get::<_, &str>("reason") == "replayed" {
        let text = "Your code was used already. If you have clicked twice, the device was reset by the first click: \
                    reset it again with your next code, to see the new secret.";
        return refuse(Wrong::new(text, &["code"]));
    } else if let Some(mut wrong) = judged(&row, false) {
        wrong.text += " Nothing was reset.";
        return refuse(wrong);
    }

    let mut db = desk::role(&app).await?;
    let tx = db.transaction().await?;
    desk::act_as(&tx, &session).await?;
    tx.execute("DELETE FROM app.session WHERE member = $1", &[&member]).await?; // in the order of Token::lock_all
    let query =
        "SELECT r.secret, r.otpauth_uri, mfa.totp_qr_svg(r.otpauth_uri) AS svg FROM mfa.totp_reset($1, $2) AS r";
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

fn show(session: &Session, member: &str, device: &str, new_codes: bool, wrong: &Option<Wrong>) -> Response {
    let password = Field { name: "password", label: "Your password", fills: "current-password", ..Field::default() };
    let new_list = "Make new recovery codes, too: someone may have the old list";
    let (label, hint) = ("A code of your own device", "One that you have not used yet.");
    let code = Field { name: "code", label, hint, fills: "one-time-code", ..Field::default() };
    let content = html! {
        p .warning { "Warning: the codes that " (device) " of " (member) " shows stop working at once." }
        p { (member) " cannot sign in with it until they have the new secret, which is good for an hour." }
        p { "If they still have the device, cancel: they replace it themselves, and its codes work meanwhile." }
        form method="post" {
            input type="hidden" name="device" value=(device);
            label { input type="checkbox" name="sure" required; "I have made sure that it is " (member) " who asks" }
            label { input type="checkbox" name="new_codes" checked[new_codes]; (new_list) }
            (password.show(wrong)) (code.show(wrong))
            button { "Reset " (device) " of " (member) }
        }
        p { a href={ "/desk/" (member) } { "Cancel" } }
    };
    page(&format!("Reset {device} of {member}?"), session, wrong, content)
}
