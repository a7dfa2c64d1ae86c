//! The desk ends the locks of a user.

use super::*;

pub async fn ask(State(app): State<App>, visitor: Visitor, Path(member): Member) -> Answer {
    let session = visitor.desk()?;
    desk::must_be_another(&app, &session, &member).await?;
    Ok(show(&session, &member, &None))
}

pub async fn unlock(
    State(app): State<App>,
    visitor: Visitor,
    Path(member): Member,
    Form(typed): Form<Typed>,
) -> Answer {
    let session = visitor.desk()?;
    desk::must_be_another(&app, &session, &member).await?;
    let wrong = fresh::check(&app, &session, &typed).await?;
    if wrong.is_some() {
        return Ok(show(&session, &member, &wrong));
    }
    let mut db = desk::role(&app).await?;
    let tx = db.transaction().await?;
    desk::act_as(&tx, &session).await?;
    tx.execute("SELECT mfa.totp_unlock($1)", &[&member]).await?;
    tx.commit().await?;
    Ok(Redirect::to(&format!("/desk/{member}")).into_response())
}

fn show(session: &Session, member: &str, wrong: &Option<Wrong>) -> Response {
    let content = html! {
        p { "Ask " (member) " who typed the wrong codes: someone may be guessing. Most locks end by themselves." }
        form method="post" { (fresh::fields(wrong)) button { "Unlock " (member) } }
        p { a href={ "/desk/" (member) } { "Cancel" } }
    };
    page(&format!("Unlock {member}?"), session, wrong, content)
}
