//! What a handler returns, and what pg_totp says, in words for the person at the screen.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use deadpool_postgres::PoolError;
use tokio_postgres::{Row, error::SqlState};

use crate::App;
use crate::layout::{Wrong, message};
use crate::session::Session;

pub type Answer = Result<Response, Failure>;

/// Why there is no page.
pub enum Failure {
    /// Another page is meant.
    Elsewhere(&'static str),
    NotFound,
    /// With what to do.
    Refused(Wrong),
    /// For the log alone.
    Broken(String),
}

impl Failure {
    pub fn refused(text: &str) -> Self {
        Self::Refused(Wrong::new(text, &[]))
    }
}

impl From<PoolError> for Failure {
    fn from(error: PoolError) -> Self {
        Self::Broken(error.to_string())
    }
}

const BAD_NAME: &str = "You have a device of that name, or the name is empty or too long. Choose another one.";

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Self {
        match error.code().map(SqlState::code) {
            Some("22021") => Self::refused("There is a character in it that cannot be. Type it again."),
            Some("22023") => Self::Refused(Wrong::new(BAD_NAME, &["name"])),
            Some("54000") => Self::refused("You have as many devices as you may have. Remove one first."),
            Some("55000") => Self::refused("This device is blocked. Ask the help desk."),
            Some("42704") => Self::Elsewhere("/"), // gone, as at the second of two clicks: see what there is
            // No message of pg_totp has a code or a secret. A DETAIL of PostgreSQL may have a row.
            _ => Self::Broken(match error.as_db_error() {
                Some(said) => format!("{}: {}", said.code().code(), said.message()),
                None => error.to_string(),
            }),
        }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        match self {
            Self::Elsewhere(page) => Redirect::to(page).into_response(),
            Self::NotFound => message(StatusCode::NOT_FOUND, "No such page", "There is no such user, device or page."),
            Self::Refused(wrong) => message(StatusCode::UNPROCESSABLE_ENTITY, "That was not done", &wrong.text),
            Self::Broken(error) => {
                eprintln!("error: {error}");
                let text = "Something is wrong on our side. Try again in a minute.";
                message(StatusCode::INTERNAL_SERVER_ERROR, "That did not work", text)
            }
        }
    }
}

/// A row of totp_check, totp_check_recover or totp_check_confirm: what is wrong, and what to do. None: it was accepted.
/// Who signs in is not told whether they have a device, or that it is disabled.
pub fn judged(row: &Row, of_list: bool) -> Option<Wrong> {
    let [help, next, again] = if of_list {
        ["Ask the help desk.", "Type another one of the list.", "Type one that is not crossed out."]
    } else {
        ["Use a recovery code, or ask the help desk.", "Wait for the next one.", "Type the one that is shown now."]
    };
    let (attempts_left, wait): (Option<i32>, Option<i32>) = (row.get("attempts_left"), row.get("retry_after"));
    let (of_proof, reason) = match row.get::<_, &str>("reason") {
        "accepted" => return None,
        reason => (reason.starts_with("proof_"), reason.trim_start_matches("proof_")),
    };
    let (what, to_do) = match (reason, attempts_left) {
        ("locked", _) => ("There were too many wrong codes.", help),
        ("replayed", _) => ("This code was used already.", next),
        ("malformed", _) => ("This is not a whole code.", "Type all of it."),
        ("expired" | "nothing_pending", _) => ("This setup is over.", "Begin again."),
        ("required", _) => ("You have a device already.", SECOND_FIELD),
        (_, Some(0)) => ("This code is wrong, and it was one too many.", help),
        (_, Some(1)) => ("This code is wrong. After one more you have to wait.", again),
        _ => ("This code is wrong.", again),
    };
    let to_do = wait.map_or(to_do.into(), |seconds| format!("Try again in {}.", duration(seconds)));
    let good_half = if of_proof && reason != "required" { GOOD_HALF } else { "" };
    let about: &[_] = if of_proof { &["proof"] } else { &["code"] };
    Some(Wrong { text: format!("{good_half}{what} {to_do}"), about, wait })
}

const SECOND_FIELD: &str = "Type a code of it, or a recovery code, in the second field.";
const GOOD_HALF: &str = "The code of the new device is right, but the second field is not. ";

/// What is wrong with a proof, after a call that says no, and not why. Asks how its counter stands, with a text that
/// cannot be a code and is not counted.
pub async fn refused_proof(app: &App, session: &Session, proof: &str) -> Result<Wrong, Failure> {
    let of_list = proof.chars().filter(char::is_ascii_alphanumeric).count() > 8; // longer than a code of an app
    let call = if of_list { "totp_check_recover" } else { "totp_check" };
    let row = app.one(&format!("SELECT * FROM mfa.{call}($1, '')"), &[&session.member]).await?;
    let locked = judged(&row, of_list).filter(|_| row.get::<_, &str>("reason") == "locked");
    let text = "This code is wrong, or was used already. Wait for the next one, and type that.";
    Ok(Wrong { about: &["proof"], ..locked.unwrap_or(Wrong::new(text, &[])) })
}

fn duration(seconds: i32) -> String {
    match seconds {
        1 => "1 second".into(),
        2..120 => format!("{seconds} seconds"),
        _ => format!("{} minutes", (seconds + 59) / 60),
    }
}
