//! A new device: the first one, another one, one in place of an old one, and one in place of a lost one.
//!
//! The new secret is staged: what the user has works until the new device has shown its first code. Who has a device already
//! needs a proof besides, a code of it or a recovery code: a stolen password, or a session left open, is not enough there.

use deadpool_postgres::GenericClient;
use maud::PreEscaped;
use tokio_postgres::Row;

use super::*;

#[derive(Deserialize)]
pub struct Typed {
    device: String,
    code: String,
    #[serde(default)]
    proof: String,
}

/// Asks which device, and tells what is needed.
pub async fn ask(State(app): State<App>, visitor: Visitor, Query(named): Query<Named>) -> Answer {
    let session = visitor.either();
    let query = "SELECT DISTINCT device FROM mfa.totp_status($1) WHERE approved ORDER BY device";
    let rows = app.web.get().await?.query(query, &[&session.member]).await?;
    let names: Vec<&str> = rows.iter().map(|row| row.get(0)).collect();
    let name =
        Field { name: "device", label: "Its name", hint: "Such as: phone, tablet", first: true, ..Field::default() };
    let (title, which) = if !session.is_full() && !names.is_empty() {
        let lost = html! {
            p { "You need a recovery code of the list that you have printed, or a code of another device of yours. "
                "If you have neither, ask the help desk." }
            fieldset {
                legend { "Which device is lost or broken?" }
                @for (i, name) in names.iter().enumerate() {
                    label { input type="radio" name="device" value=(name) required checked[names.len() == 1] autofocus[i == 0]; (name) }
                }
            }
        };
        ("Set up a new device", lost)
    } else if !session.is_full() {
        let first = html! {
            p { "You sign in with your password and a code of an authenticator app. If you have none, install one on your phone." }
            (name.text("phone"))
        };
        ("Set up your first device", first)
    } else if named.device.is_empty() {
        ("Add a device", name.text(""))
    } else {
        let old = html! {
            p { "Keep the old " (named.device) " until this is done: it works until the new one has shown its first code." }
            input type="hidden" name="device" value=(named.device);
        };
        ("Replace a device", old)
    };
    Ok(ok(title, &session, html! { form method="post" action="/enroll" { (which) button { "Go on" } } }))
}

/// Makes the secret and shows it, this once. The call is its own transaction: when its row is here, it is committed.
pub async fn begin(State(app): State<App>, visitor: Visitor, Form(named): Form<Named>) -> Answer {
    let (session, device) = (visitor.either(), named.device.trim());
    let db = app.web.get().await?;
    let query = "SELECT e.secret, e.otpauth_uri, mfa.totp_qr_svg(e.otpauth_uri) AS svg
                   FROM mfa.totp_enroll($1, issuer => 'Example', device => $2) AS e";
    let new = db.query_one(query, &[&session.member, &device]).await?;
    Ok(show(&session, device, has_mfa(&db, &session).await?, Some(&new), None))
}

pub async fn confirm(State(app): State<App>, Token(token): Token, Form(typed): Form<Typed>) -> Answer {
    let mut db = app.web.get().await?;
    let tx = db.transaction().await?;
    session::lock_all(&tx, &token).await?;
    let (mut session, again) = session::lock(&tx, &token, &typed.code).await?;
    if again {
        // The recovery codes were in the answer to the first click, which the browser has dropped: that page makes new ones.
        let cookie = session::raise(&tx, &app, &token, &typed.code, &mut session).await?;
        tx.commit().await?;
        return Ok((cookie, Redirect::to("/recovery-codes")).into_response());
    }
    let query = "SELECT accepted, reason, attempts_left, retry_after, recovery_codes
                   FROM mfa.totp_check_confirm($1, $2, $3, proof => nullif($4, ''), recovery_codes => $5)";
    let new_codes = if session.is_full() { 0 } else { 10 };
    let row = tx.query_one(query, &[&session.member, &typed.code, &typed.device, &typed.proof, &new_codes]).await?;
    let judged = Judged::from(&row);
    if judged.accepted {
        session::end_others(&tx, &session.member, &token).await?; // who has the lost device may be signed in on it
    }
    if session.is_full() && (judged.accepted || judged.reason == "nothing_pending") {
        tx.commit().await?; // nothing is pending at the second of two clicks: the list of devices shows that it is done
        return Ok(Redirect::to("/").into_response());
    }
    if judged.accepted {
        let cookie = session::raise(&tx, &app, &token, &typed.code, &mut session).await?;
        tx.commit().await?;
        return Ok((cookie, recovery_codes::list(&session, row.get("recovery_codes"))).into_response());
    }
    tx.commit().await?;
    let mfa = judged.is_about_proof() || has_mfa(&db, &session).await?;
    Ok(show(&session, &typed.device, mfa, None, Some(&judged)))
}

async fn has_mfa(db: &impl GenericClient, session: &Session) -> Result<bool, Failure> {
    Ok(db.query_one("SELECT mfa.totp_enabled($1)", &[&session.member]).await?.get(0))
}

/// The secret and the fields that confirm it. After a mistake the fields alone: the secret is shown once, and the app has it.
fn show(session: &Session, device: &str, mfa: bool, new: Option<&Row>, refused: Option<&Judged>) -> Response {
    let (label, hint) = ("Code that the new device shows", "It changes twice a minute.");
    let of_proof = refused.is_some_and(Judged::is_about_proof);
    let wrong = refused.is_some() && !of_proof;
    let code = Field { name: "code", label, hint, fills: "one-time-code", first: wrong, wrong };
    let content = html! {
        @if let Some(new) = new { (scan(new)) p { "Confirm it within ten minutes." } } @else {
            p { "Your app has the account by now. If it has not, " a href="/enroll" { "begin again" } "." }
        }
        form method="post" action="/enroll/confirm" {
            input type="hidden" name="device" value=(device);
            (code.digits())
            @if mfa { (proof(of_proof, of_proof)) }
            button { "Confirm" }
        }
    };
    Judged::page(refused, &format!("Set up {device}"), session, content)
}

/// A new secret in its three forms. The page of the desk has it, too.
pub fn scan(new: &Row) -> Markup {
    let secret: Vec<char> = new.get::<_, &str>("secret").chars().collect();
    let in_fours: Vec<String> = secret.chunks(4).map(String::from_iter).collect();
    html! {
        p { "Open the authenticator app, add an account, and scan this picture. It is shown once." }
        div .qr role="img" aria-label="QR code of the secret below" { (PreEscaped(new.get::<_, &str>("svg"))) }
        p { "If you cannot scan it, type this secret into the app: " span #secret .secret { (in_fours.join(" ")) } }
        p { a href=(new.get::<_, &str>("otpauth_uri")) { "Open it in an app on this device" } }
    }
}
