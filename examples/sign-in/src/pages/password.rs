//! The password. It opens the page for the code, and nothing else.

use argon2::{Argon2, PasswordHasher, PasswordVerifier};
use axum::extract::RawQuery;

use super::*;

/// Who is signed in, and came by the back button, goes on.
pub async fn ask(visitor: Result<Visitor, Failure>, RawQuery(query): RawQuery) -> Response {
    match visitor.and_then(Visitor::full) {
        Ok(_) => Redirect::to("/").into_response(),
        Err(_) => show("", query.as_deref() == Some("ended"), &None),
    }
}

pub async fn check(State(app): State<App>, token: Token, Form(typed): Form<Typed>) -> Answer {
    let user = typed.user.trim().to_lowercase();
    let rows = app.rows("SELECT name, password FROM app.member WHERE name = $1", &[&user]).await?;
    // A user who does not exist costs a hash too, and gets the same answer.
    let hash = rows.first().map_or(app.nobody.to_string(), |row| row.get(1));
    let right = is_right(&app, typed.password, hash).await;
    let Some(row) = rows.first().filter(|_| right) else {
        let text = "User name or password is wrong. Type both again.";
        return Ok(show(&user, false, &Some(Wrong::new(text, &["password", "user"]))));
    };
    // From here on the user is the name in the row, and never what was typed.
    let cookie = token.begin(&app.web.get().await?, row.get(0)).await?;
    Ok((cookie, Redirect::to("/code")).into_response())
}

fn show(user: &str, ended: bool, wrong: &Option<Wrong>) -> Response {
    let name =
        Field { name: "user", label: "User name", fills: "username", value: user, first: true, ..Field::default() };
    let password = Field { name: "password", label: "Password", fills: "current-password", ..Field::default() };
    let content = html! {
        @if ended { p role="status" { "Your session has ended. Sign in again. If you sent a form, it was not done." } }
        form method="post" action="/sign-in" { (name.show(wrong)) (password.show(wrong)) button { "Sign in" } }
    };
    page("Sign in", None, wrong, content)
}

/// Argon2 takes 19 MiB and some hundredths of a second of a core: two at a time, and not where requests are answered.
pub async fn is_right(app: &App, password: String, hash: String) -> bool {
    let _turn = app.hashing.acquire().await;
    let work = move || Argon2::default().verify_password(password.as_bytes(), hash.as_str()).is_ok();
    tokio::task::spawn_blocking(work).await.unwrap_or(false)
}

pub fn hash(password: &str) -> String {
    Argon2::default().hash_password(password.as_bytes()).expect("the parameters are valid").to_string()
}
