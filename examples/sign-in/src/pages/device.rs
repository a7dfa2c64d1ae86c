//! What the user can do with one device. Each form asks for a proof, which pg_totp judges.

use super::recovery_codes::NO_PROOF;
use super::*;

#[derive(Deserialize)]
pub struct Typed {
    device: String,
    name: String,
    proof: String,
}

pub async fn show(State(app): State<App>, visitor: Visitor, Query(named): Query<Named>) -> Answer {
    forms(&app, &visitor.full()?, &named.device, None).await
}

pub async fn rename(State(app): State<App>, visitor: Visitor, Form(typed): Form<Typed>) -> Answer {
    let session = visitor.full()?;
    let query = "SELECT mfa.totp_rename_device($1, $2, $3, $4)";
    let web = app.web.get().await?;
    let row = web.query_one(query, &[&session.member, &typed.device, &typed.name.trim(), &typed.proof]).await?;
    answer(&app, &session, &typed.device, (!row.get::<_, bool>(0)).then_some(NO_PROOF)).await
}

/// Not the last one: that would turn the second factor off, and everyone has one here.
pub async fn remove(State(app): State<App>, visitor: Visitor, Token(token): Token, Form(typed): Form<Typed>) -> Answer {
    let session = visitor.full()?;
    let query = "SELECT CASE WHEN EXISTS (SELECT FROM mfa.totp_status($1) WHERE state = 'active' AND device <> $3)
                             THEN mfa.totp_unenroll($1, $2, $3) END";
    let mut db = app.web.get().await?;
    let tx = db.transaction().await?;
    session::lock_all(&tx, &token).await?;
    let row = tx.query_one(query, &[&session.member, &typed.proof, &typed.device]).await?;
    let removed: Option<bool> = row.get(0);
    if removed == Some(true) {
        session::end_others(&tx, &session.member, &token).await?; // one of them may be on that device
    }
    tx.commit().await?;
    let error = match removed {
        Some(true) => None,
        Some(false) => Some(NO_PROOF),
        None => Some("This is your only device. Replace it instead."),
    };
    answer(&app, &session, &typed.device, error).await
}

async fn answer(app: &App, session: &Session, device: &str, error: Option<&str>) -> Answer {
    if error.is_none() { Ok(Redirect::to("/").into_response()) } else { forms(app, session, device, error).await }
}

async fn forms(app: &App, session: &Session, device: &str, error: Option<&str>) -> Answer {
    let query = "SELECT FROM mfa.totp_status($1) WHERE device = $2 LIMIT 1";
    app.web.get().await?.query_opt(query, &[&session.member, &device]).await?.ok_or(Failure::NotFound)?;
    let name = Field { name: "name", label: "Name", hint: "Such as: phone, tablet", ..Field::default() };
    let hidden = html! { input type="hidden" name="device" value=(device); };
    let content = html! {
        h2 { "Replace it" }
        p { "For a new phone, or a new app. The old one works until the new one does." }
        form action="/enroll" { (hidden) button { "Replace " (device) } }
        h2 { "Rename or remove it" }
        form method="post" action="/device/rename" {
            (hidden) (name.text(device)) (proof(error.is_some(), error.is_some()))
            button { "Rename" } " " button formaction="/device/remove" { "Remove" }
        }
    };
    Ok(form(&format!("Change {device}"), session, error, content))
}
