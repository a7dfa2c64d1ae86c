//! What a backend in Rust gets: tokio-postgres with bind parameters and prepared statements, deadpool-postgres for a pool.
//!
//! tests/run-clients starts the server. Its clock stands still, and role `app` has the capability `enroll`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use deadpool_postgres::{Manager, Pool};
use tokio_postgres::error::{DbError, SqlState};
use tokio_postgres::{Client, Config, NoTls};
use totp_rs::{Builder, Secret, Totp};

/// The server's time in unix seconds: 2030-01-01 12:00:00 UTC.
const NOW: u64 = 1_893_499_200;

const ENROLL: &str = "SELECT secret FROM totp_enroll($1)";
const CONFIRM: &str = "SELECT totp_confirm($1, $2)";
const VERIFY: &str = "SELECT totp_verify($1, $2)";
const CHECK: &str = "SELECT accepted, reason, matched_device, attempts_left, retry_at FROM totp_check($1, $2)";

fn config(role: &str) -> Config {
    let env = |name| std::env::var(name).expect("tests/run-clients runs these tests");
    let mut config = Config::new();
    config.host(env("PGHOST")).port(env("PGPORT").parse().expect("a port")).dbname(env("PGDATABASE")).user(role);
    config
}

async fn connect(role: &str) -> Client {
    let (client, connection) = config(role).connect(NoTls).await.expect("the server takes connections");
    tokio::spawn(connection);
    client
}

fn pool() -> Pool {
    Pool::builder(Manager::new(config("app"), NoTls)).max_size(4).build().expect("a pool needs no more")
}

/// Enrolls a user and confirms with the code before the current one; the user's authenticator.
async fn user(client: &Client, user_id: &str) -> Totp {
    let secret: String = client.query_one(ENROLL, &[&user_id]).await.unwrap().get("secret");
    let app = Builder::new().with_secret(Secret::try_from_base32(secret).unwrap()).build().unwrap();
    let confirmed: bool = client.query_one(CONFIRM, &[&user_id, &code(&app, NOW - 30)]).await.unwrap().get(0);
    assert!(confirmed);
    app
}

fn code(app: &Totp, time: u64) -> String {
    app.generate(time).to_string()
}

/// A code that is none of those the server accepts.
fn wrong_code(app: &Totp) -> String {
    let accepted = [NOW - 30, NOW, NOW + 30].map(|time| code(app, time));
    (0..=3).map(|number| format!("{number:06}")).find(|code| !accepted.contains(code)).unwrap()
}

async fn verify(client: &Client, user_id: &str, code: &str) -> bool {
    client.query_one(VERIFY, &[&user_id, &code]).await.unwrap().get(0)
}

/// The error that a statement ends in.
async fn error(client: &Client, query: &str, user_id: &str, code: &str) -> DbError {
    let error = client.query(query, &[&user_id, &code]).await.expect_err("an error");
    error.as_db_error().expect("an error of the server").clone()
}

#[tokio::test]
async fn true_once_and_false_for_all_else() {
    let client = connect("app").await;
    let app = user(&client, "rust/bind").await;
    assert!(!verify(&client, "rust/bind", &wrong_code(&app)).await);
    assert!(!verify(&client, "rust/bind", "no code").await);
    assert!(!verify(&client, "rust/nobody", &code(&app, NOW)).await);
    assert!(verify(&client, "rust/bind", &code(&app, NOW)).await);
    assert!(!verify(&client, "rust/bind", &code(&app, NOW)).await);
}

#[tokio::test]
async fn null_is_false() {
    let client = connect("app").await;
    let app = user(&client, "rust/null").await;
    let row = client.query_one(VERIFY, &[&"rust/null", &None::<&str>]).await.unwrap();
    assert_eq!(row.get::<_, Option<bool>>(0), Some(false));
    let row = client.query_one(VERIFY, &[&None::<&str>, &code(&app, NOW)]).await.unwrap();
    assert_eq!(row.get::<_, Option<bool>>(0), Some(false));
}

#[tokio::test]
async fn check_tells_why() {
    let client = connect("app").await;
    let app = user(&client, "rust/check").await;
    for (code, expected) in [
        (wrong_code(&app), (false, "wrong", None, Some(4), None)),
        (code(&app, NOW), (true, "accepted", Some("default"), Some(5), None)),
        (code(&app, NOW), (false, "replayed", Some("default"), Some(5), None)),
        ("no code".into(), (false, "malformed", None, Some(5), None)),
    ] {
        let row = client.query_one(CHECK, &[&"rust/check", &code]).await.unwrap();
        let got =
            (row.get(0), row.get(1), row.get(2), row.get::<_, Option<i32>>(3), row.get::<_, Option<SystemTime>>(4));
        assert_eq!(got, expected);
    }
}

#[tokio::test]
async fn a_locked_user_is_refused_with_the_time_of_the_next_try() {
    let client = connect("app").await;
    let app = user(&client, "rust/locked").await;
    for _ in 0..5 {
        assert!(!verify(&client, "rust/locked", &wrong_code(&app)).await);
    }
    assert!(!verify(&client, "rust/locked", &code(&app, NOW)).await);
    let row = client.query_one(CHECK, &[&"rust/locked", &code(&app, NOW)]).await.unwrap();
    assert!(!row.get::<_, bool>("accepted"));
    assert_eq!(row.get::<_, &str>("reason"), "locked");
    assert_eq!(row.get::<_, i32>("attempts_left"), 0);
    assert_eq!(row.get::<_, SystemTime>("retry_at"), UNIX_EPOCH + Duration::from_secs(NOW + 30));
}

#[tokio::test]
async fn errors_have_their_sqlstate_and_leave_the_connection_usable() {
    let client = connect("app").await;
    let app = user(&client, "rust/error").await;

    let bad = error(&client, "SELECT totp_enroll($1, algorithm => $2)", "rust/error", "MD5").await;
    assert_eq!(*bad.code(), SqlState::INVALID_PARAMETER_VALUE);
    assert!(bad.detail().is_some_and(|detail| detail.contains("SHA256")));

    client.batch_execute("BEGIN READ ONLY").await.unwrap();
    let read_only = error(&client, VERIFY, "rust/error", &code(&app, NOW)).await;
    assert_eq!(*read_only.code(), SqlState::READ_ONLY_SQL_TRANSACTION);
    assert!(read_only.hint().is_some());
    client.batch_execute("ROLLBACK").await.unwrap();

    // A secret that does not open is an error: it is neither a good code nor a wrong one.
    assert_eq!(*error(&client, VERIFY, "broken", &code(&app, NOW)).await.code(), SqlState::DATA_CORRUPTED);

    let stranger = connect("stranger").await;
    let denied = error(&stranger, VERIFY, "rust/error", &code(&app, NOW)).await;
    assert_eq!(*denied.code(), SqlState::INSUFFICIENT_PRIVILEGE);

    assert!(verify(&client, "rust/error", &code(&app, NOW)).await);
}

#[tokio::test]
async fn one_prepared_statement_serves_every_user() {
    let client = connect("app").await;
    let statement = client.prepare(VERIFY).await.unwrap();
    for number in 0..10 {
        // From its sixth use on PostgreSQL may run a prepared statement by a plan that knows no parameter.
        let user_id = format!("rust/prepared {number}");
        let app = user(&client, &user_id).await;
        for (code, expected) in [(wrong_code(&app), false), (code(&app, NOW), true), (code(&app, NOW), false)] {
            let answer: bool = client.query_one(&statement, &[&user_id, &code]).await.unwrap().get(0);
            assert_eq!(answer, expected);
        }
    }
}

#[tokio::test]
async fn of_a_pool_one_connection_gets_in() {
    let pool = pool();
    let app = user(&pool.get().await.unwrap(), "rust/pool").await;
    let tasks: Vec<_> = (0..12)
        .map(|_| {
            let (pool, code) = (pool.clone(), code(&app, NOW));
            tokio::spawn(async move {
                let client = pool.get().await.unwrap();
                let statement = client.prepare_cached(VERIFY).await.unwrap();
                client.query_one(&statement, &[&"rust/pool", &code]).await.unwrap().get::<_, bool>(0)
            })
        })
        .collect();
    let mut accepted = 0;
    for task in tasks {
        accepted += usize::from(task.await.unwrap());
    }
    assert_eq!(accepted, 1);
}

#[tokio::test]
async fn a_pool_counts_wrong_guesses_over_all_its_connections() {
    let pool = pool();
    let app = user(&pool.get().await.unwrap(), "rust/guesses").await;
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(pool.get().await.unwrap());
    }
    for number in 0..5 {
        assert!(!verify(&held[number % 4], "rust/guesses", &wrong_code(&app)).await);
    }
    assert!(!verify(&held[1], "rust/guesses", &code(&app, NOW)).await);
    let row = held[2].query_one(CHECK, &[&"rust/guesses", &code(&app, NOW)]).await.unwrap();
    assert_eq!(row.get::<_, &str>("reason"), "locked");
}
