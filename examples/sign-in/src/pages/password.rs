//! The password. It opens the page for the code, and nothing else.

use argon2::{Argon2, PasswordHasher, PasswordVerifier};

use super::*;

#[derive(Deserialize)]
pub struct Typed {
    user: String,
    password: String,
}

/// Who is signed in, and came by the back button, goes on.
pub async fn ask(visitor: Result<Visitor, Failure>) -> Response {
    match visitor.and_then(Visitor::full) {
        Ok(_) => Redirect::to("/").into_response(),
        Err(_) => show("", None),
    }
}

pub async fn check(State(app): State<App>, Token(old): Token, Form(typed): Form<Typed>) -> Answer {
    let user = typed.user.trim().to_lowercase();
    let query = "SELECT name, password FROM app.member WHERE name = $1";
    let row = app.web.get().await?.query_opt(query, &[&user]).await?;
    // A user who does not exist costs a hash too, and gets the same answer.
    let hash = row.as_ref().map_or(app.nobody.to_string(), |row| row.get(1));
    let right = is_right(&app, typed.password, hash).await;
    let Some(row) = row.filter(|_| right) else {
        return Ok(show(&user, Some("User name or password is wrong. Type both again.")));
    };
    // From here on the user is the name in the row, and never what was typed.
    let cookie = session::begin(&app.web.get().await?, &app, &old, row.get(0)).await?;
    Ok((cookie, Redirect::to("/code")).into_response())
}

fn show(user: &str, error: Option<&str>) -> Response {
    let (first, wrong) = (user.is_empty(), error.is_some());
    let name = Field { name: "user", label: "User name", hint: "", fills: "username", first, wrong };
    let password =
        Field { name: "password", label: "Password", hint: "", fills: "current-password", first: !first, wrong };
    let content = html! {
        form method="post" { (name.text(user)) (password.password()) button { "Sign in" } }
    };
    page(if wrong { StatusCode::UNPROCESSABLE_ENTITY } else { StatusCode::OK }, "Sign in", None, error, content)
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
