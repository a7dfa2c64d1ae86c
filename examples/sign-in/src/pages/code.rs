//! The code of an authenticator, at /code, or a recovery code instead, at /recover. No device has to be chosen: a code
//! of any of them will do.

use axum::http::Uri;

use super::*;

/// Who has no device yet goes on to set one up.
pub async fn ask(State(app): State<App>, visitor: Visitor, address: Uri) -> Answer {
    let session = visitor.half()?;
    let query = "SELECT mfa.totp_enabled($1), EXISTS (SELECT FROM mfa.totp_status($1) WHERE state = 'disabled')";
    let row = app.one(query, &[&session.member]).await?;
    match (row.get(0), row.get(1)) {
        (true, _) => Ok(show(&session, address.path() == "/recover", &None)),
        (false, true) => Err(Failure::refused("Your devices are blocked. Ask the help desk.")),
        (false, false) => Err(Failure::Elsewhere("/enroll")),
    }
}

pub async fn check(State(app): State<App>, token: Token, address: Uri, Form(typed): Form<Typed>) -> Answer {
    let of_list = address.path() == "/recover";
    let mut db = app.web.get().await?;
    let tx = db.transaction().await?;
    let (mut session, again) = token.lock(&tx, &typed.code).await?;
    if session.is_full() {
        return Err(Failure::Elsewhere("/")); // signed in meanwhile, in another tab
    }
    enroll::needs_proof(&tx, &session).await?; // a first code sets up a device here, too
    let query = format!("SELECT * FROM mfa.{}($1, $2)", if of_list { "totp_check_recover" } else { "totp_check" });
    let wrong = match again {
        true => None,
        false => judged(&tx.query_one(&query, &[&session.member, &typed.code]).await?, of_list),
    };
    let answer = match wrong {
        None => (token.raise(&tx, &typed.code, &mut session).await?, Redirect::to("/")).into_response(),
        wrong => show(&session, of_list, &wrong),
    };
    // A refused code, too: it is counted in any case, but a rollback would take its row out of the audit log.
    tx.commit().await?;
    Ok(answer)
}

fn show(session: &Session, of_list: bool, wrong: &Option<Wrong>) -> Response {
    let (title, label, fills, hint) = if of_list {
        let hint = "One of the list that you have printed. It works once: cross it out.";
        ("Use a recovery code", "Recovery code", "", hint)
    } else {
        let hint = "Open your authenticator app, and type the code that it shows for this site.";
        ("Type your code", "Code", "one-time-code", hint)
    };
    let code = Field { name: "code", label, hint, fills, first: true, ..Field::default() };
    let content = html! {
        form method="post" { (code.show(wrong)) button { "Go on" } }
        @if of_list {
            p { "Device lost? " a href="/enroll" { "Set up a new one" } " with a recovery code: it signs you in, too." }
            p { a href="/code" { "Back to the code of your app" } }
        } @else {
            h2 { "No code?" }
            ul {
                li { a href="/recover" { "Use a recovery code" } ", this once" }
                li { a href="/enroll" { "Set up a new device" } ", because the old one is lost or broken" }
                li { a href="/sign-in" { "Sign in as someone else" } }
            }
        }
    };
    page(title, session, wrong, content)
}
