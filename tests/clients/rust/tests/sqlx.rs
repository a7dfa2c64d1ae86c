//! sqlx compiles and reads every call of tests/clients/calls.sql: its macros ask the server for the types of parameters
//! and columns, and describe each statement with NULL for its parameters.
//!
//! tests/run-clients makes the file of calls from the server, and compiles this crate beside it. The clock stands still.

mod show;

use show::Shows;
use sqlx::{Connection, PgConnection};

/// What is wrong with a call, or nothing.
macro_rules! call {
    ($conn:ident, $statement:literal, [$($arg:expr),*], $error:expr, []) => {
        outcome($statement, $error, sqlx::query!($statement, $($arg),*).execute(&mut *$conn).await, |_| Ok(()))
    };
    ($conn:ident, $statement:literal, [$($arg:expr),*], $error:expr, [$($column:ident),*]) => {
        outcome($statement, $error, sqlx::query!($statement, $($arg),*).fetch_all(&mut *$conn).await, |rows| {
            for row in rows {
                let mut expected = row.expected.iter();
                $(if !row.$column.shows(expected.next().ok_or("there are more columns")?.as_deref()) {
                    return Err(stringify!($column));
                })*
                if expected.next().is_some() {
                    return Err("there are fewer columns");
                }
            }
            Ok(())
        })
    };
}

fn outcome<T>(
    statement: &str,
    error: Option<&str>,
    got: Result<T, sqlx::Error>,
    check: impl FnOnce(T) -> Result<(), &'static str>,
) -> Option<String> {
    let problem = match (got, error) {
        (Ok(rows), None) => check(rows).err()?.to_string(),
        (Err(sqlx::Error::Database(got)), Some(code)) if got.code().as_deref() == Some(code) => return None,
        (Err(got), _) => got.to_string(),
        (Ok(_), Some(code)) => format!("it does not raise {code}"),
    };
    Some(format!("{statement}: {problem}"))
}

// async fn problems(conn: &mut PgConnection) -> Vec<String>
include!(env!("SQLX_CALLS"));

async fn connect() -> PgConnection {
    let url = std::env::var("DATABASE_URL").expect("tests/run-clients runs these tests");
    PgConnection::connect(&url).await.expect("the server takes connections")
}

#[tokio::test]
async fn compiles_and_reads_every_answer() {
    let problems = problems(&mut connect().await).await;
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// As people write it: the planner calls an IMMUTABLE function with the NULL of the description.
#[tokio::test]
async fn compiles_functions_that_a_planner_calls() {
    let (mut conn, uri, secret) = (connect().await, "otpauth://totp/a?secret=GEZDGNBVGY3TQOJQ", "GEZDGNBVGY3TQOJQ");
    assert!(sqlx::query_scalar!("SELECT totp_qr_svg($1)", uri).fetch_one(&mut conn).await.unwrap().is_some());
    assert!(sqlx::query_scalar!("SELECT totp_qr_png($1)", uri).fetch_one(&mut conn).await.unwrap().is_some());
    assert!(sqlx::query_scalar!("SELECT totp_qr_text($1)", uri).fetch_one(&mut conn).await.unwrap().is_some());
    let code = sqlx::query_scalar!("SELECT totp_code_at($1, now())", secret).fetch_one(&mut conn).await.unwrap();
    assert_eq!(code.unwrap().len(), 6);
}

#[tokio::test]
#[should_panic(expected = "overflow")]
async fn would_not_read_infinity() {
    let _ = sqlx::query_scalar!("SELECT timestamptz 'infinity'").fetch_one(&mut connect().await).await;
}

/// Without the macro; with it, it does not compile.
#[tokio::test]
async fn an_id_that_is_a_number_is_an_error() {
    let query = sqlx::query("SELECT totp_verify($1, $2)").bind(42).bind("123456");
    let error = query.execute(&mut connect().await).await.expect_err("an error");
    assert_eq!(error.as_database_error().and_then(|error| error.code()).as_deref(), Some("42883"));
}
