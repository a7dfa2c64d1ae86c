//! What a handler returns, and what pg_totp says, in words for the person at the screen.

use axum::http::{StatusCode, header::RETRY_AFTER};
use axum::response::{IntoResponse, Redirect, Response};
use deadpool_postgres::PoolError;
use maud::Markup;
use tokio_postgres::{Row, error::SqlState};

use crate::layout::{form, message};
use crate::session::Session;

pub type Answer = Result<Response, Failure>;

/// Why there is no page.
pub enum Failure {
    /// Another page is meant.
    Elsewhere(&'static str),
    NotFound,
    /// With what to do.
    Refused(&'static str),
    /// For the log alone.
    Broken(String),
}

impl From<PoolError> for Failure {
    fn from(error: PoolError) -> Self {
        match error {
            PoolError::Backend(error) => error.into(),
            error => Self::Broken(error.to_string()),
        }
    }
}

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Self {
        match error.code().map(SqlState::code) {
            Some("22021") => Self::Refused("There is a character in it that cannot be. Type it again."),
            Some("22023") => Self::Refused("You have a device of that name, or it is no name. Choose another one."),
            Some("54000") => Self::Refused("You have as many devices as you may have. Remove one first."),
            Some("55000") => Self::Refused("This device is blocked. Ask the help desk."),
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
        let (status, title, text) = match self {
            Self::Elsewhere(page) => return Redirect::to(page).into_response(),
            Self::NotFound => (StatusCode::NOT_FOUND, "No such page", "There is no such user, device or page."),
            Self::Refused(text) => (StatusCode::UNPROCESSABLE_ENTITY, "That was not done", text),
            Self::Broken(error) => {
                eprintln!("error: {error}");
                let text = "Something is wrong on our side. Try again in a minute.";
                (StatusCode::INTERNAL_SERVER_ERROR, "That did not work", text)
            }
        };
        message(status, title, text)
    }
}

/// The answer of totp_check, totp_check_recover or totp_check_confirm.
pub struct Judged {
    pub accepted: bool,
    pub reason: String,
    /// A recovery code was asked for, and not one of an app.
    pub of_list: bool,
    attempts_left: Option<i32>,
    retry_after: Option<i32>,
}

impl From<&Row> for Judged {
    fn from(row: &Row) -> Self {
        let (accepted, reason) = (row.get("accepted"), row.get("reason"));
        let (attempts_left, retry_after) = (row.get("attempts_left"), row.get("retry_after"));
        Self { accepted, reason, of_list: false, attempts_left, retry_after }
    }
}

impl Judged {
    /// What is wrong, and what to do. Who signs in is not told whether they have a device, or that it is disabled.
    pub fn in_words(&self) -> String {
        let (support, next, again) = if self.of_list {
            ("Ask the help desk.", "Type another one of the list.", "Type one that is not crossed out.")
        } else {
            let support = "Use a recovery code, or ask the help desk.";
            (support, "Wait for the next one.", "Type the one that is shown now.")
        };
        let (what, to_do) = match (self.reason.trim_start_matches("proof_"), self.attempts_left) {
            ("locked", _) => ("There were too many wrong codes.", support),
            ("replayed", _) => ("This code was used already.", next),
            ("malformed", _) => ("This is not a whole code.", "Type all of it."),
            ("expired" | "nothing_pending", _) => ("This setup is over.", "Begin again."),
            ("required", _) => {
                ("You have a device already.", "Type a code of it, or a recovery code, in the second field.")
            }
            (_, Some(0)) => ("This code is wrong, and it was one too many.", support),
            (_, Some(1)) => ("This code is wrong. After one more you have to wait.", again),
            _ => ("This code is wrong.", again),
        };
        let to_do = self.retry_after.map_or(to_do.into(), |seconds| format!("Try again in {}.", wait(seconds)));
        let first_field = if self.is_about_proof() && self.reason != "proof_required" {
            "The code of the new device is right, but the second field is not. "
        } else {
            ""
        };
        format!("{first_field}{what} {to_do}")
    }

    /// Whether it is the second field that has to be typed again.
    pub fn is_about_proof(&self) -> bool {
        self.reason.starts_with("proof_")
    }

    /// The page of a code that was refused, or is asked for.
    pub fn page(refused: Option<&Self>, title: &str, who: &Session, content: Markup) -> Response {
        let error = refused.map(Self::in_words);
        let mut response = form(title, who, error.as_deref(), content);
        if let Some(seconds) = refused.and_then(|it| it.retry_after) {
            *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
            response.headers_mut().insert(RETRY_AFTER, seconds.into());
        }
        response
    }
}

fn wait(seconds: i32) -> String {
    match seconds {
        1 => "1 second".into(),
        2..120 => format!("{seconds} seconds"),
        _ => format!("{} minutes", (seconds + 59) / 60),
    }
}
