//! What the desk is asked for again before it acts on a user: a session that somebody left open does nothing.

use super::*;

pub fn fields(wrong: &Option<Wrong>) -> Markup {
    let password = Field { name: "password", label: "Your password", fills: "current-password", ..Field::default() };
    let (label, hint) = ("A code of your own device", "One that you have not used yet.");
    let code = Field { name: "code", label, hint, fills: "one-time-code", ..Field::default() };
    html! { (password.show(wrong)) (code.show(wrong)) }
}

/// None: go on. It uses the code up, so it comes after all else that can refuse.
pub async fn check(app: &App, session: &Session, typed: &Typed) -> Result<Option<Wrong>, Failure> {
    let hash = app.one("SELECT password FROM app.member WHERE name = $1", &[&session.member]).await?.get(0);
    if !password::is_right(app, typed.password.clone(), hash).await {
        return Ok(Some(Wrong::new("Your password is wrong. Nothing was done.", &["password"])));
    }
    let row = app.one("SELECT * FROM mfa.totp_check($1, $2)", &[&session.member, &typed.code]).await?;
    let twice = "If you have clicked twice, the first click did it: to see its answer, do it again with that code.";
    let end = if row.get::<_, &str>("reason") == "replayed" { twice } else { "Nothing was done." };
    Ok(judged(&row, false).map(|wrong| Wrong { text: format!("{} {end}", wrong.text), ..wrong }))
}
