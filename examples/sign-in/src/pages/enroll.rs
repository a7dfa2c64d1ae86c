//! A new device: the first one, another one, one in place of an old one, and one in place of a lost one.
//!
//! The new secret is staged: what the user has works until the new device has shown its first code. Who has a device
//! already needs a proof besides, a code of it or a recovery code: a stolen password, or a session left open, is not
//! enough there.

use deadpool_postgres::GenericClient;
use maud::PreEscaped;
use tokio_postgres::Row;

use super::*;

/// Asks which device, and tells what is needed.
pub async fn ask(State(app): State<App>, visitor: Visitor, Query(asked): Query<Typed>) -> Answer {
    let session = visitor.either();
    needs_proof(&app.web.get().await?, &session).await?;
    let query = "SELECT WHERE $2 = '' UNION ALL SELECT FROM mfa.totp_status($1) WHERE device = $2";
    app.must_have(query, &[&session.member, &asked.device]).await?;
    which(&app, &session, &asked.device, "", &None).await
}

const FIRST: &str = "You sign in with your password and a code of an authenticator app. \
                     If you have none, install one on your phone.";
const LOST: &str = "You need a recovery code of the list that you have printed, or a code of another device of yours. \
                    If you have neither, ask the help desk.";
const OLD: &str = "Keep the old one until this is done: it works until the new one has shown its first code.";

async fn which(app: &App, session: &Session, old: &str, typed: &str, wrong: &Option<Wrong>) -> Answer {
    let query = "SELECT DISTINCT device FROM mfa.totp_status($1) WHERE approved ORDER BY device";
    let rows = app.rows(query, &[&session.member]).await?;
    let names: Vec<&str> = rows.iter().map(|row| row.get(0)).collect();
    let lost = !session.is_full() && !names.is_empty();
    let (title, text) = match (session.is_full(), old) {
        (false, _) if lost => ("Set up a new device", LOST),
        (false, _) => ("Set up your first device", FIRST),
        (true, "") => ("Add a device", "The others work as before."),
        (true, _) => ("Replace a device", OLD),
    };
    let (label, hint) = ("Its name", "Such as: phone, tablet");
    let value = if session.is_full() || wrong.is_some() { typed } else { "phone" };
    let name = Field { name: "device", label, hint, value, first: true, ..Field::default() };
    let content = html! {
        p { (text) }
        form method="post" action="/enroll" {
            @if lost {
                fieldset {
                    legend { "Which device is lost or broken?" }
                    @for name in &names {
                        @let (first, alone) = (*name == names[0], names.len() == 1);
                        label {
                            input type="radio" name="device" value=(name) required checked[alone] autofocus[first];
                            (name)
                        }
                    }
                }
            } @else if session.is_full() && !old.is_empty() {
                input type="hidden" name="device" value=(old);
            } @else {
                (name.show(wrong))
            }
            button { "Go on" }
        }
    };
    Ok(page(title, session, wrong, content))
}

/// Makes the secret and shows it, this once.
pub async fn begin(State(app): State<App>, visitor: Visitor, token: Token, Form(typed): Form<Typed>) -> Answer {
    let (session, device) = (visitor.either(), typed.device.trim());
    let mfa = needs_proof(&app.web.get().await?, &session).await?;
    if !token.lasts(&app).await? {
        return Err(Failure::refused("Your session is about to end. Sign out, sign in again, and begin then."));
    }
    let query = "SELECT *, mfa.totp_qr_svg(otpauth_uri) AS svg
                   FROM mfa.totp_enroll($1, issuer => 'Example', device => $2)";
    let new = match app.one(query, &[&session.member, &device]).await {
        Err(Failure::Refused(wrong)) => {
            return which(&app, &session, "", device, &Some(Wrong { about: &["device"], ..wrong })).await;
        }
        given => given?,
    };
    Ok(show(&session, device, mfa, Some(&new), &None))
}

/// Whether it takes a proof. Who works at the desk gets the first device from an administrator (README.md): if a
/// password were enough for it, a stolen one would open the desk.
pub async fn needs_proof(db: &impl GenericClient, session: &Session) -> Result<bool, Failure> {
    let has_mfa: bool = db.query_one("SELECT mfa.totp_enabled($1)", &[&session.member]).await?.get(0);
    if session.desk && !has_mfa {
        return Err(Failure::refused("You work at the help desk: ask an administrator to set up your first device."));
    }
    Ok(has_mfa)
}

pub async fn confirm(State(app): State<App>, token: Token, Form(typed): Form<Typed>) -> Answer {
    let mut db = app.web.get().await?;
    let tx = db.transaction().await?;
    token.lock_all(&tx).await?;
    let (mut session, again) = token.lock(&tx, &typed.code).await?;
    if again {
        // The recovery codes were in the answer to the first click, which the browser has dropped: make new ones.
        let cookie = token.raise(&tx, &typed.code, &mut session).await?;
        tx.commit().await?;
        return Ok((cookie, Redirect::to("/recovery-codes")).into_response());
    }
    let mfa = needs_proof(&tx, &session).await?;
    let query = "SELECT * FROM mfa.totp_check_confirm($1, $2, $3, proof => nullif($4, ''), recovery_codes => $5)";
    let new_codes = if session.is_full() { 0 } else { 10 };
    let row = tx.query_one(query, &[&session.member, &typed.code, &typed.device, &typed.proof, &new_codes]).await?;
    let wrong = judged(&row, false);
    if wrong.is_none() {
        token.end_others(&tx, &session.member).await?; // who has the lost device may be signed in on it
    }
    let answer = if wrong.is_none() && !session.is_full() {
        let cookie = token.raise(&tx, &typed.code, &mut session).await?;
        (cookie, recovery_codes::list(&session, row.get("recovery_codes"))).into_response()
    } else if wrong.is_none() || session.is_full() && row.get::<_, &str>("reason") == "nothing_pending" {
        Redirect::to("/").into_response() // nothing is pending at the second of two clicks: the first page shows it
    } else {
        show(&session, &typed.device, mfa, None, &wrong)
    };
    tx.commit().await?;
    Ok(answer)
}

/// The secret and the fields that confirm it. After a mistake the fields alone: the secret is shown once, and the app
/// has it.
fn show(session: &Session, device: &str, mfa: bool, new: Option<&Row>, wrong: &Option<Wrong>) -> Response {
    let (label, hint) = ("Code that the new device shows", "It changes twice a minute.");
    let code = Field { name: "code", label, hint, fills: "one-time-code", ..Field::default() };
    let content = html! {
        @if let Some(new) = new {
            (scan(new))
            p { "Confirm it within ten minutes." }
        } @else {
            p { "Your app has the account by now. If it has not, " a href="/enroll" { "begin again" } "." }
        }
        form method="post" action="/enroll/confirm" {
            input type="hidden" name="device" value=(device);
            (code.show(wrong))
            @if mfa { (proof(false, wrong)) }
            button { "Confirm" }
        }
    };
    page(&format!("Set up {device}"), session, wrong, content)
}

/// A new secret in its three forms. The page of the desk has it, too.
pub fn scan(new: &Row) -> Markup {
    let [secret, uri, svg]: [&str; 3] = ["secret", "otpauth_uri", "svg"].map(|column| new.get(column));
    let in_fours: Vec<&str> = secret.as_bytes().chunks(4).filter_map(|it| str::from_utf8(it).ok()).collect();
    html! {
        p { "Open the authenticator app, add an account, and scan this picture. It is shown once." }
        div .qr role="img" aria-label="QR code of the secret below" { (PreEscaped(svg)) }
        p { "If you cannot scan it, type this secret into the app: " span #secret .secret { (in_fours.join(" ")) } }
        p { a href=(uri) { "Open it in an app on this device" } }
    }
}
