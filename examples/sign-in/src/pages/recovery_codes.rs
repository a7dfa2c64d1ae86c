//! Recovery codes, to print: shown once, with a device that was set up for the sign-in, and when the user asks for new ones.

use super::*;

#[derive(Deserialize)]
pub struct Typed {
    proof: String,
}

pub async fn ask(State(app): State<App>, visitor: Visitor) -> Answer {
    show(&app, &visitor.full()?, None).await
}

pub async fn create(State(app): State<App>, visitor: Visitor, Form(typed): Form<Typed>) -> Answer {
    let session = visitor.full()?;
    let query = "SELECT code FROM mfa.totp_recovery_codes($1, 10, $2) AS code";
    let rows = app.web.get().await?.query(query, &[&session.member, &typed.proof]).await?;
    if rows.is_empty() {
        let error = format!(
            "{NO_PROOF} If you have clicked twice, the first click made new codes: make them again, to see them."
        );
        return show(&app, &session, Some(&error)).await;
    }
    Ok(list(&session, rows.iter().map(|row| row.get(0)).collect()))
}

/// Some calls say no, and not why.
pub const NO_PROOF: &str = "That code is wrong, or was used already, or you have to wait after too many wrong ones. \
                            Wait for the next code, and type that.";

async fn show(app: &App, session: &Session, error: Option<&str>) -> Answer {
    let query = "SELECT coalesce(max(recovery_codes_left), 0) FROM mfa.totp_status($1)";
    let left: i32 = app.web.get().await?.query_one(query, &[&session.member]).await?.get(0);
    let content = html! {
        p { "You have " (left) " unused recovery codes. Each signs you in once, or sets up a new device if the old one is lost." }
        p { "If you have not seen them, or have lost the list, make new ones. The old ones end then." }
        form method="post" { (proof(true, error.is_some())) button { "Make new recovery codes" } }
    };
    Ok(form("Recovery codes", session, error, content))
}

pub fn list(session: &Session, codes: Vec<String>) -> Response {
    let content = html! {
        p { "Print this page, or write the codes down, and keep them apart from your phone. They are shown this one time." }
        p { "Each works once: it signs you in, or sets up a new device if the old one is lost. Older codes have ended." }
        ol .codes { @for code in codes { li { (code) } } }
        p { a href="/" { "I have them: go on" } }
    };
    ok("Your recovery codes", session, content)
}
