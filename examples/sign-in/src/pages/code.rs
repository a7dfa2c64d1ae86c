//! The code of an authenticator, or a recovery code instead. No device has to be chosen: a code of any of them will do.

use super::*;

#[derive(Deserialize)]
pub struct Typed {
    code: String,
}

const CODE: &str = "SELECT accepted, reason, attempts_left, retry_after FROM mfa.totp_check($1, $2)";
const RECOVERY: &str = "SELECT accepted, reason, attempts_left, retry_after FROM mfa.totp_check_recover($1, $2)";

/// Who has no device yet goes on to set one up.
pub async fn ask(State(app): State<App>, visitor: Visitor) -> Answer {
    let session = visitor.half()?;
    let query =
        "SELECT totp_enabled, NOT totp_enabled AND EXISTS (SELECT FROM mfa.totp_status($1) WHERE state = 'disabled')
                   FROM mfa.totp_enabled($1)";
    let row = app.web.get().await?.query_one(query, &[&session.member]).await?;
    if row.get(1) {
        return Err(Failure::Refused("Your devices are blocked. Ask the help desk."));
    }
    if row.get(0) { Ok(show(&session, None)) } else { Err(Failure::Elsewhere("/enroll")) }
}

pub async fn ask_recovery(visitor: Visitor) -> Answer {
    Ok(show_recovery(&visitor.half()?, None))
}

pub async fn check(State(app): State<App>, token: Token, Form(typed): Form<Typed>) -> Answer {
    judge(app, token, typed.code, CODE, show).await
}

pub async fn check_recovery(State(app): State<App>, token: Token, Form(typed): Form<Typed>) -> Answer {
    judge(app, token, typed.code, RECOVERY, show_recovery).await
}

type Show = fn(&Session, Option<&Judged>) -> Response;

async fn judge(app: App, Token(token): Token, code: String, query: &str, show: Show) -> Answer {
    let mut db = app.web.get().await?;
    let tx = db.transaction().await?;
    let (mut session, again) = session::lock(&tx, &token, &code).await?;
    if session.is_full() {
        return Err(Failure::Elsewhere("/")); // signed in meanwhile, in another tab
    }
    let judged = if again { None } else { Some(Judged::from(&tx.query_one(query, &[&session.member, &code]).await?)) };
    let answer = match judged {
        Some(mut judged) if !judged.accepted => {
            judged.of_list = query == RECOVERY;
            show(&session, Some(&judged))
        }
        _ => (session::raise(&tx, &app, &token, &code, &mut session).await?, Redirect::to("/")).into_response(),
    };
    // A refused code, too: it is counted in any case, but a rollback would take its row out of the audit log.
    tx.commit().await?;
    Ok(answer)
}

fn show(session: &Session, refused: Option<&Judged>) -> Response {
    let hint = "Open your authenticator app, and type the code that it shows for this site.";
    let code =
        Field { name: "code", label: "Code", hint, fills: "one-time-code", first: true, wrong: refused.is_some() };
    let content = html! {
        form method="post" action="/code" { (code.digits()) button { "Go on" } }
        h2 { "No code?" }
        ul {
            li { a href="/recover" { "Use a recovery code" } ", this once" }
            li { a href="/enroll" { "Set up a new device" } ", because the old one is lost or broken" }
            li { a href="/sign-in" { "Sign in as someone else" } }
        }
    };
    Judged::page(refused, "Type your code", session, content)
}

fn show_recovery(session: &Session, refused: Option<&Judged>) -> Response {
    let hint = "One of the list that you have printed. It works once: cross it out.";
    let code = Field { name: "code", label: "Recovery code", hint, fills: "", first: true, wrong: refused.is_some() };
    let content = html! {
        form method="post" action="/recover" { (code.text("")) button { "Go on" } }
        p { "Is your device lost? " a href="/enroll" { "Set up a new one" } " instead: it needs one recovery code, and signs you in." }
        p { a href="/code" { "Back to the code of your app" } }
    };
    Judged::page(refused, "Use a recovery code", session, content)
}
