//! Recovery codes, to print: shown once, with the first device and one in place of a lost one, and when the user asks
//! for new ones.

use super::*;

pub async fn ask(State(app): State<App>, visitor: Visitor) -> Answer {
    show(&app, &visitor.full()?, &None).await
}

pub async fn create(State(app): State<App>, visitor: Visitor, Form(typed): Form<Typed>) -> Answer {
    let session = visitor.full()?;
    let query = "SELECT mfa.totp_recovery_codes($1, 10, $2)";
    let rows = app.rows(query, &[&session.member, &typed.proof]).await?;
    if rows.is_empty() {
        let mut wrong = refused_proof(&app, &session, &typed.proof).await?;
        wrong.text += " If you have clicked twice, the first click made new codes: make them again, to see them.";
        return show(&app, &session, &Some(wrong)).await;
    }
    Ok(list(&session, rows.iter().map(|row| row.get(0)).collect()))
}

async fn show(app: &App, session: &Session, wrong: &Option<Wrong>) -> Answer {
    let query = "SELECT coalesce(max(recovery_codes_left), 0) FROM mfa.totp_status($1)";
    let left: i32 = app.one(query, &[&session.member]).await?.get(0);
    let content = html! {
        p { "You have " (left) " unused recovery codes." }
        p { "Each signs you in once, or sets up a new device if the old one is lost." }
        p { "If you have not seen them, or have lost the list, make new ones. The old ones end then." }
        form method="post" { (proof(true, wrong)) button { "Make new recovery codes" } }
    };
    Ok(page("Recovery codes", session, wrong, content))
}

pub fn list(session: &Session, codes: Vec<&str>) -> Response {
    let content = html! {
        p { "They are shown this one time. Print this page, or write them down; keep them apart from your phone." }
        p { "Each works once: it signs you in, or sets up a new device if the old one is lost." }
        p { "Older codes have ended." }
        (layout::codes(codes))
        p { a href="/" { "I have them: go on" } }
    };
    page("Your recovery codes", session, &None, content)
}
