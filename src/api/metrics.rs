//! `totp_metrics`: numbers for Prometheus.
//!
//! Owns the names of the metrics, which alert rules rely on. Must never scan a table of users, nor return a value that is not
//! a finite number.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::guard;
use super::health::{self, Check, Status};
use crate::clock;
use crate::error::Error;
use crate::keyring;
use crate::store;
use crate::store::counters::Counts;

/// A row of `totp_metrics`.
struct Metric {
    name: String,
    value: f64,
    help: String,
}

impl Metric {
    fn new(name: &str, value: f64, help: &str) -> Self {
        Self { name: name.into(), value, help: help.into() }
    }
}

/// Returns one row per metric: counters of judged codes, gauges, and the cheap checks of `totp_health`.
#[pg_extern(security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn totp_metrics()
-> Result<TableIterator<'static, (name!(metric, String), name!(value, f64), name!(help, String))>, ErrorReport> {
    guard::not_parallel("totp_metrics")?;
    let checks = health::statuses()?;
    let mut metrics = store::counters::sums()?.map(counters).into_iter().flatten().collect::<Vec<_>>();
    if store::health::unreadable_tables().is_empty() {
        metrics.extend(gauges_of_tables()?);
    }
    metrics.push(Metric::new(
        "totp_master_keys_loaded",
        keyring::count() as f64,
        "Master keys that this session has loaded.",
    ));
    metrics.extend(of_health(&checks));
    Ok(TableIterator::new(metrics.into_iter().map(|m| (m.name, m.value, m.help))))
}

fn counters(sums: Counts) -> [Metric; 5] {
    let counter = |name, value: i64, help| Metric::new(name, value as f64, help);
    [
        counter("totp_codes_accepted_total", sums.accepted, "Codes that were accepted and used up."),
        counter("totp_codes_wrong_total", sums.wrong, "Wrong codes and wrong recovery codes."),
        counter("totp_codes_replayed_total", sums.replayed, "Codes and recovery codes that were used before."),
        counter(
            "totp_codes_locked_total",
            sums.locked,
            "Codes and recovery codes that were refused because of a lock.",
        ),
        counter("totp_recovery_codes_used_total", sums.recovery_codes_used, "Recovery codes that were accepted."),
    ]
}

/// Errors: XX001 if a table is altered.
fn gauges_of_tables() -> Result<[Metric; 2], Error> {
    Ok([
        Metric::new(
            "totp_enrolled_devices",
            store::metrics::devices()?,
            "Devices with a secret, pending ones too, estimated from the size of the table.",
        ),
        Metric::new(
            "totp_data_key_age_seconds",
            store::metrics::data_key_age(clock::now()?)?,
            "Age of the current data key, or 0 if there is none.",
        ),
    ])
}

/// Returns one metric per check, and one per table: the worst of its rows, or ok if there is none.
fn of_health(checks: &[Check]) -> Vec<Metric> {
    let tables = store::health::tables().map(|table| format!("table_{table}"));
    let mut names: Vec<String> = checks.iter().map(|check| check.name.clone()).chain(tables).collect();
    names.sort();
    names.dedup();
    let worst = |name: &str| {
        let values = checks.iter().filter(|check| check.name == name).map(|check| value(check.status));
        values.fold(value(Status::Ok), f64::max)
    };
    let metric = |name: &String| {
        let help = format!("Check {name} of totp_health(): 0 is ok, 1 is warn, 2 is fail.");
        Metric { name: format!("totp_health_{name}"), value: worst(name), help }
    };
    names.iter().map(metric).collect()
}

fn value(status: Status) -> f64 {
    match status {
        Status::Ok => 0.0,
        Status::Warn => 1.0,
        Status::Fail => 2.0,
    }
}
