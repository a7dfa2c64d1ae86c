//! The code of an authenticator, or a recovery code instead. No device has to be chosen: a code of any of them will do.

use super::*;

/// Who has no device yet goes on to set one up.
pub async fn ask(State(app): State<App>, visitor: Visitor) -> Answer {
    let session = visitor.half()?;
    let query = "SELECT mfa.totp_enabled($1), EXISTS (SELECT FROM mfa.totp_status($1) WHERE state = 'disabled')";
    let row = app.one(query, &[&session.member]).await?;
    match (row.get(0), row.get(1)) {
        (true, _) => Ok(show(&session, &None)),
        (false, true) => Err(Failure::refused("Your devices are blocked. Ask the help desk.")),
        (false, false) => Err(Failure::Elsewhere("/enroll")),
    }
}

pub async fn ask_recovery(visitor: Visitor) -> Answer {
    Ok(show_recovery(&visitor.half()?, &None))
}

pub async fn check(State(app): State<App>, token: Token, Form(typed): Form<Typed>) -> Answer {
    judge(app, token, typed.code, false).await
}

pub async fn check_recovery(State(app): State<App>, token: Token, Form(typed): Form<Typed>) -> Answer {
    judge(app, token, typed.code, true).await
}

async fn judge(app: App, token: Token, code: String, of_list: bool) -> Answer {
    let call = if of_list { "totp_check_recover" } else { "totp_check" };
    let mut db = app.web.get().await?;
    let tx = db.transaction().await?;
    let (mut session, again) = token.lock(&tx, &code).await?;
    if session.is_full() {
        return Err(Failure::Elsewhere("/")); // signed in meanwhile, in another tab
    }
    enroll::needs_proof(&tx, &session).await?; // a first code sets up a device here, too
    let query = format!("SELECT * FROM mfa.{call}($1, $2)");
    let wrong = match again {
        true => None,
        false => judged(&tx.query_one(&query, &[&session.member, &code]).await?, of_list),
    };
    let answer = match wrong {
        None => (token.raise(&tx, &code, &mut session).await?, Redirect::to("/")).into_response(),
        wrong if of_list => show_recovery(&session, &wrong),
        wrong => show(&session, &wrong),
    };
    // A refused code, too: it is counted in any case, but a rollback would take its row out of the audit log.
    tx.commit().await?;
    Ok(answer)
}

fn show(session: &Session, wrong: &Option<Wrong>) -> Response {
    let hint = "Open your authenticator app, and type the code that it shows for this site.";
    let code = Field { name: "code", label: "Code", hint, fills: "one-time-code", first: true, ..Field::default() };
    let content = html! {
        form method="post" action="/code" { (code.show(wrong)) button { "Go on" } }
        h2 { "No code?" }
        ul {
            li { a href="/recover" { "Use a recovery code" } ", this once" }
            li { a href="/enroll" { "Set up a new device" } ", because the old one is lost or broken" }
            li { a href="/sign-in" { "Sign in as someone else" } }
        }
    };
    page("Type your code", session, wrong, content)
}

fn show_recovery(session: &Session, wrong: &Option<Wrong>) -> Response {
    let hint = "One of the list that you have printed. It works once: cross it out.";
    let code = Field { name: "code", label: "Recovery code", hint, first: true, ..Field::default() };
    let content = html! {
        form method="post" action="/recover" { (code.show(wrong)) button { "Go on" } }
        p { "Device lost? " a href="/enroll" { "Set up a new one" } " with a recovery code. That signs you in, too." }
        p { a href="/code" { "Back to the code of your app" } }
    };
    page("Use a recovery code", session, wrong, content)
}
