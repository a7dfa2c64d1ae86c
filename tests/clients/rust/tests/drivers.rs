//! tokio-postgres reads every answer of the extension: the calls of tests/clients/calls.sql. It reads in binary.
//!
//! tests/run-clients starts the server. Its clock stands still.

mod show;

use std::error::Error;

use chrono::{DateTime, Utc};
use show::Shows;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Config, NoTls, Row};

struct Call {
    call: String,
    args: Vec<Option<String>>,
    error: Option<String>,
    statement: String,
    columns: Vec<String>,
}

async fn connect() -> Client {
    let env = |name| std::env::var(name).expect("tests/run-clients runs these tests");
    let mut config = Config::new();
    config.host(env("PGHOST")).port(env("PGPORT").parse().expect("a port")).dbname("drivers").user("postgres");
    let (client, connection) = config.connect(NoTls).await.expect("the server takes connections");
    tokio::spawn(connection);
    client
}

/// Whether column `n` has the value that the server says it has.
fn reads(row: &Row, n: usize, expected: Option<&str>) -> Result<bool, Box<dyn Error>> {
    fn get<'a, T: Shows + tokio_postgres::types::FromSql<'a>>(
        row: &'a Row,
        n: usize,
        expected: Option<&str>,
    ) -> Result<bool, Box<dyn Error>> {
        Ok(row.try_get::<_, Option<T>>(n)?.shows(expected))
    }
    match *row.columns()[n].type_() {
        Type::BOOL => get::<bool>(row, n, expected),
        Type::INT4 => get::<i32>(row, n, expected),
        Type::INT8 => get::<i64>(row, n, expected),
        Type::FLOAT8 => get::<f64>(row, n, expected),
        Type::TEXT => get::<String>(row, n, expected),
        Type::BYTEA => get::<Vec<u8>>(row, n, expected),
        Type::TIMESTAMPTZ => get::<DateTime<Utc>>(row, n, expected),
        Type::TEXT_ARRAY => get::<Vec<String>>(row, n, expected),
        Type::INT4_ARRAY => get::<Vec<i32>>(row, n, expected),
        Type::VOID => Ok(true),
        ref other => Err(format!("no test reads the type {other}").into()),
    }
}

async fn check(client: &Client, call: &Call) -> Result<(), Box<dyn Error>> {
    let args: Vec<&(dyn ToSql + Sync)> = call.args.iter().map(|arg| arg as _).collect();
    let rows = match (client.query(&call.statement, &args).await, &call.error) {
        (Ok(rows), None) => rows,
        (Err(error), Some(code)) if error.code().is_some_and(|got| got.code() == code) => return Ok(()),
        (Err(error), _) => return Err(error.into()),
        (Ok(_), Some(code)) => return Err(format!("it does not raise {code}").into()),
    };
    for row in rows {
        let expected: Vec<Option<&str>> = row.try_get("expected")?;
        let names: Vec<_> = row.columns().iter().map(|column| column.name()).collect();
        if names[..names.len() - 1] != call.columns {
            return Err(format!("its columns are {names:?}").into());
        }
        for (n, expected) in expected.into_iter().enumerate() {
            if !reads(&row, n, expected)? {
                return Err(format!("{} is not {expected:?}", names[n]).into());
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn reads_every_answer() {
    let client = connect().await;
    let mut problems = Vec::new();
    let rows = client.query("SELECT * FROM calls('tokio-postgres')", &[]).await.unwrap();
    assert!(!rows.is_empty());
    for row in rows {
        let call = Call {
            call: row.get("call"),
            args: row.get("args"),
            error: row.get("error"),
            statement: row.get("statement"),
            columns: row.get::<_, Option<_>>("columns").unwrap_or_default(),
        };
        if let Err(error) = check(&client, &call).await {
            problems.push(format!("{} with {:?}: {error}", call.call, call.args));
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[tokio::test]
async fn would_not_read_infinity() {
    let row = connect().await.query_one("SELECT timestamptz 'infinity'", &[]).await.unwrap();
    assert!(reads(&row, 0, Some("infinity")).is_err());
}

/// The driver looks at the type of the parameter before it sends anything.
#[tokio::test]
async fn an_id_that_is_a_number_is_an_error_of_the_driver() {
    let client = connect().await;
    let error = client.query("SELECT totp_verify($1, $2)", &[&42, &"123456"]).await.expect_err("an error");
    assert!(error.as_db_error().is_none());
    let row = client.query_one("SELECT totp_verify($1, $2)", &[&42.to_string(), &"123456"]).await.unwrap();
    assert!(!row.get::<_, bool>(0));
}
