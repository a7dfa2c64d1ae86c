//! Sessions: a cookie with a random token, and a row. A new token at each change of the level.
//!
//! - `password`: the password was right. Ten minutes, for the code.
//! - `full`: signed in. Eight hours.
//! - `spent`: was replaced by a full one. Half a minute, for a user who clicks twice: the browser drops the answer to
//!   the first click, and the new token with it. Who comes with the old token and the same code gets a token, too.
//!   Nobody else does: who has seen only the code, or has only the cookie, gets nothing.

use std::convert::Infallible;

use axum::extract::{FromRequestParts, State};
use axum::http::{HeaderName, header, request::Parts};
use axum::response::{AppendHeaders, IntoResponse, Redirect};
use deadpool_postgres::{GenericClient, Transaction};
use sha2::{Digest, Sha256};
use tokio_postgres::Row;

use crate::App;
use crate::answer::{Answer, Failure};

pub struct Session {
    pub member: String,
    /// Works at the help desk.
    pub desk: bool,
    /// And its pages are here.
    pub sees_desk: bool,
    level: String,
}

const FIND: &str = "SELECT s.member, m.desk, s.level, s.spent_on
                      FROM app.session s JOIN app.member m ON m.name = s.member
                     WHERE s.token = $1 AND s.expires_at > now()";

impl Session {
    fn from(row: &Row) -> Self {
        Self { member: row.get(0), desk: row.get(1), sees_desk: false, level: row.get(2) }
    }

    pub fn is_full(&self) -> bool {
        self.level == "full"
    }
}

/// Who asks. A page has to say who it is for to get the session: the others go elsewhere.
pub struct Visitor(Session);

impl Visitor {
    /// Who is signed in.
    pub fn full(self) -> Result<Session, Failure> {
        if self.0.is_full() { Ok(self.0) } else { Err(Failure::Elsewhere("/code")) }
    }

    /// Who has given the password, and owes the code.
    pub fn half(self) -> Result<Session, Failure> {
        if self.0.is_full() { Err(Failure::Elsewhere("/")) } else { Ok(self.0) }
    }

    pub fn either(self) -> Session {
        self.0
    }

    /// Who is signed in, and works at the help desk.
    pub fn desk(self) -> Result<Session, Failure> {
        self.full().and_then(|it| if it.desk { Ok(it) } else { Err(Failure::NotFound) })
    }
}

impl FromRequestParts<App> for Visitor {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Failure> {
        let Ok(token) = Token::from_request_parts(parts, app).await;
        let rows = app.rows(&format!("{FIND} AND s.level <> 'spent'"), &[&token.hash()]).await?;
        let mut session = Session::from(rows.first().ok_or(token.ended())?);
        session.sees_desk = session.desk && app.desk.is_some();
        Ok(Self(session))
    }
}

/// The token of the cookie; empty if there is none.
pub struct Token {
    text: String,
    /// Whether browsers come by TLS.
    secure: bool,
}

impl FromRequestParts<App> for Token {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Infallible> {
        let none = Self { text: String::new(), secure: app.origin.starts_with("https:") };
        let cookies = parts.headers.get_all(header::COOKIE).iter().filter_map(|it| it.to_str().ok());
        let mut pairs = cookies.flat_map(|it| it.split("; ")).filter_map(|it| it.split_once('='));
        let text = pairs.find(|(name, _)| *name == none.name()).map_or("", |(_, value)| value).to_owned();
        Ok(Self { text, ..none })
    }
}

impl Token {
    /// Begins a session of the level `password`, in place of the one that came.
    pub async fn begin(&self, db: &impl GenericClient, member: &str) -> Result<Cookie, Failure> {
        db.execute("DELETE FROM app.session WHERE token = $1 OR expires_at < now()", &[&self.hash()]).await?;
        self.insert(db, member, "password", "10 minutes").await
    }

    /// The session, locked until the transaction ends: the second of two clicks waits here for the first. True: this is
    /// the second one, with the code that the first one has used up.
    pub async fn lock(&self, tx: &Transaction<'_>, code: &str) -> Result<(Session, bool), Failure> {
        let row = tx.query_opt(&format!("{FIND} FOR UPDATE OF s"), &[&self.hash()]).await?;
        let row = row.ok_or(self.ended())?;
        match row.get::<_, Option<Vec<u8>>>("spent_on") {
            None => Ok((Session::from(&row), false)),
            Some(spent_on) if spent_on == self.hash_with(code) => Ok((Session::from(&row), true)),
            Some(_) => Err(self.ended()),
        }
    }

    /// Who had a session is told so.
    fn ended(&self) -> Failure {
        Failure::Elsewhere(if self.text.is_empty() { "/sign-in" } else { "/sign-in?ended" })
    }

    /// Whether there are ten minutes for what now begins. A session of the level `password` gets them: typing the
    /// password again would, too. A full one ends when it ends, or who has stolen it could keep it.
    pub async fn lasts(&self, app: &App) -> Result<bool, Failure> {
        let query = "UPDATE app.session SET expires_at = greatest(expires_at, now() + interval '10 minutes')
                      WHERE token = $1 AND (level = 'password' OR expires_at > now() + interval '10 minutes')
                  RETURNING level";
        Ok(!app.rows(query, &[&self.hash()]).await?.is_empty())
    }

    /// All sessions of the member, before pg_totp locks the member: who ends sessions locks in this order, too.
    pub async fn lock_all(&self, tx: &Transaction<'_>) -> Result<(), Failure> {
        let query = "SELECT FROM app.session WHERE member = (SELECT member FROM app.session WHERE token = $1)
                      ORDER BY token FOR UPDATE";
        tx.query(query, &[&self.hash()]).await?;
        Ok(())
    }

    /// Ends all sessions of the member but this one.
    pub async fn end_others(&self, tx: &Transaction<'_>, member: &str) -> Result<(), Failure> {
        let query = "DELETE FROM app.session WHERE member = $1 AND token <> $2";
        tx.execute(query, &[&member, &self.hash()]).await?;
        Ok(())
    }

    /// Makes it a full session: the token that came is spent on this code, and there is a new one.
    pub async fn raise(&self, tx: &Transaction<'_>, code: &str, session: &mut Session) -> Result<Cookie, Failure> {
        let spend = "UPDATE app.session SET level = 'spent', spent_on = $2, expires_at = now() + interval '30 seconds'
                      WHERE token = $1 AND level <> 'spent'";
        tx.execute(spend, &[&self.hash(), &self.hash_with(code)]).await?;
        session.level = "full".into();
        self.insert(tx, &session.member, "full", "8 hours").await
    }

    async fn insert(&self, db: &impl GenericClient, member: &str, level: &str, age: &str) -> Result<Cookie, Failure> {
        let new = Self { text: random_token(), ..*self };
        let query = "INSERT INTO app.session VALUES ($1, $2, $3, now() + $4::text::interval)";
        db.execute(query, &[&new.hash(), &member, &level, &age]).await?;
        Ok(new.cookie(""))
    }

    /// No script reads it, no other site sends it with a form, and it ends with the browser. With `__Host-` no other
    /// host of the domain can set it. Lax, not Strict: a link in a mail leads to the page, and not to the sign-in.
    fn cookie(&self, age: &str) -> Cookie {
        let secure = if self.secure { "; Secure" } else { "" };
        let value = format!("{}={}; Path=/; HttpOnly; SameSite=Lax{secure}{age}", self.name(), self.text);
        AppendHeaders([(header::SET_COOKIE, value)])
    }

    fn name(&self) -> &'static str {
        if self.secure { "__Host-session" } else { "session" }
    }

    fn hash(&self) -> Vec<u8> {
        Sha256::digest(&self.text).to_vec()
    }

    fn hash_with(&self, code: &str) -> Vec<u8> {
        Sha256::digest(format!("{} {code}", self.text)).to_vec()
    }
}

pub type Cookie = AppendHeaders<[(HeaderName, String); 1]>;

pub async fn sign_out(State(app): State<App>, mut token: Token) -> Answer {
    let query = "DELETE FROM app.session WHERE token = $1
                     OR level = 'spent' AND member = (SELECT member FROM app.session WHERE token = $1)";
    app.rows(query, &[&token.hash()]).await?;
    token.text.clear();
    Ok((token.cookie("; Max-Age=0"), Redirect::to("/sign-in")).into_response())
}

/// 256 random bits.
pub fn random_token() -> String {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).expect("the operating system has random bytes");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
