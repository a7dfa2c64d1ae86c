//! What the user can do with one device. Each form asks for a proof, which pg_totp judges.

use super::*;

pub async fn show(State(app): State<App>, visitor: Visitor, Query(asked): Query<Typed>) -> Answer {
    let name = asked.device.clone();
    forms(&app, &visitor.full()?, &Typed { name, ..asked }, &None).await
}

pub async fn rename(State(app): State<App>, visitor: Visitor, Form(typed): Form<Typed>) -> Answer {
    let session = visitor.full()?;
    let query = "SELECT mfa.totp_rename_device($1, $2, $3, $4)";
    let wrong = match app.one(query, &[&session.member, &typed.device, &typed.name.trim(), &typed.proof]).await {
        Ok(row) if row.get(0) => return Ok(Redirect::to("/").into_response()),
        Ok(_) => refused_proof(&app, &session, &typed.proof).await?,
        Err(Failure::Refused(wrong)) => wrong,
        Err(other) => return Err(other),
    };
    forms(&app, &session, &typed, &Some(wrong)).await
}

/// Not the last one: that would turn the second factor off, and everyone has one here.
pub async fn remove(State(app): State<App>, visitor: Visitor, token: Token, Form(typed): Form<Typed>) -> Answer {
    let session = visitor.full()?;
    let query = "SELECT CASE WHEN EXISTS (SELECT FROM mfa.totp_status($1) WHERE state = 'active' AND device <> $3)
                             THEN mfa.totp_unenroll($1, $2, $3) END";
    let mut db = app.web.get().await?;
    let tx = db.transaction().await?;
    token.lock_all(&tx).await?;
    let removed = tx.query_one(query, &[&session.member, &typed.proof, &typed.device]).await?.get(0);
    if removed == Some(true) {
        token.end_others(&tx, &session.member).await?; // one of them may be on that device
    }
    tx.commit().await?;
    drop(db); // what follows takes a connection of its own
    let wrong = match removed {
        Some(true) => return Ok(Redirect::to("/").into_response()),
        Some(false) => refused_proof(&app, &session, &typed.proof).await?,
        None => Wrong::new("This is your only device. Replace it instead.", &[]),
    };
    forms(&app, &session, &typed, &Some(wrong)).await
}

async fn forms(app: &App, session: &Session, typed: &Typed, wrong: &Option<Wrong>) -> Answer {
    let device = &typed.device;
    app.must_have("SELECT FROM mfa.totp_status($1) WHERE device = $2", &[&session.member, device]).await?;
    let (label, hint) = ("Name", "Such as: phone, tablet");
    let name = Field { name: "name", label, hint, value: &typed.name, ..Field::default() };
    let content = html! {
        h2 { "Replace it" }
        p { "For a new phone, or a new app. The old one works until the new one does." }
        (button_to("/enroll", device, "Replace"))
        h2 { "Rename or remove it" }
        form method="post" action="/device/rename" {
            input type="hidden" name="device" value=(device);
            (name.show(wrong)) (proof(false, wrong))
            button { "Rename" } " " button formaction="/device/remove" { "Remove" }
        }
    };
    Ok(page(&format!("Change {device}"), session, wrong, content))
}
