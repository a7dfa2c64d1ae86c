//! The MACs of the audit trail: over rows, and over the seal that covers them.
//!
//! Owns the canonical form. Two rows, or two seals, must never have the same bytes, and the bytes of one must never depend on
//! a setting or a version of PostgreSQL.
//!
//! A record is `version(1)`, then for each column that is not NULL `tag(1) | length(8) | bytes`, in the order of the tags, then
//! `0`. Numbers are big endian.

use hmac::{Hmac, Mac};
use sha2::Sha256;

use crate::ids::{IdRange, IdSet};
use crate::mackey::MacKey;

/// First byte of a record.
const VERSION: u8 = 1;
/// Last byte of a record. No tag is 0.
const END: u8 = 0;
/// Bytes of tag and length.
const HEAD: usize = 9;

/// A MAC: HMAC-SHA-256.
pub type Tag = [u8; 32];

/// A row of the audit log. A column may be NULL if the table was altered.
pub struct AuditRow<'a> {
    /// Number of the row.
    pub id: i64,
    /// Microseconds since 2000-01-01.
    pub at: Option<i64>,
    /// The event.
    pub event: Option<&'a str>,
    /// The user.
    pub user_id: Option<&'a str>,
    /// The device.
    pub device: Option<&'a str>,
    /// Who did it.
    pub actor: Option<&'a str>,
    /// The session user.
    pub db_user: Option<&'a str>,
    /// The address in PostgreSQL's binary format.
    pub client_addr: Option<&'a [u8]>,
    /// `application_name`.
    pub application_name: Option<&'a str>,
    /// The text of the `jsonb`.
    pub detail: Option<&'a str>,
}

/// What the MAC of a seal covers.
pub struct Seal<'a> {
    /// Number of the seal.
    pub seal_id: i64,
    /// First id of its range.
    pub first_id: i64,
    /// Last id of its range.
    pub last_id: i64,
    /// How many rows it covers.
    pub row_count: i64,
    /// Latest time of these rows.
    pub newest_at: Option<i64>,
    /// MAC over these rows.
    pub rows_mac: &'a [u8],
    /// Ids of its range that no row had.
    pub holes: &'a IdSet,
    /// Rows in holes of earlier seals.
    pub late: &'a IdSet,
    /// Holes of seals up to this one are closed.
    pub closed_seal: i64,
    /// Rows of seals up to this one were pruned.
    pub pruned_seal: i64,
    /// Writers of that time have lower transaction ids.
    pub next_xid: Option<i64>,
    /// System identifier of the cluster.
    pub system_identifier: i64,
    /// OID of the database.
    pub database: i64,
    /// Timeline of the WAL.
    pub timeline: i64,
    /// Number of the key.
    pub key_id: i32,
    /// Microseconds since 2000-01-01.
    pub sealed_at: i64,
    /// MAC of the seal before.
    pub previous_mac: &'a [u8],
}

/// A MAC over rows, under construction.
pub struct RowsMac {
    mac: Hmac<Sha256>,
    record: Record,
}

impl RowsMac {
    /// Begins.
    pub fn new(key: &MacKey) -> RowsMac {
        RowsMac { mac: key.rows.clone(), record: Record::default() }
    }

    /// Adds the next row, in the order of the ids.
    pub fn add(&mut self, row: &AuditRow) {
        let record = &mut self.record;
        record.begin();
        record.number(1, Some(row.id));
        record.number(2, row.at);
        record.text(3, row.event);
        record.text(4, row.user_id);
        record.text(5, row.device);
        record.text(6, row.actor);
        record.text(7, row.db_user);
        record.bytes(8, row.client_addr);
        record.text(9, row.application_name);
        record.json(10, row.detail);
        record.end();
        self.mac.update(&record.0);
    }

    /// Returns the MAC.
    pub fn finish(self) -> Tag {
        self.mac.finalize().into_bytes().into()
    }

    /// Returns whether this is the MAC. Takes the same time for all bytes.
    pub fn is(self, mac: &[u8]) -> bool {
        self.mac.verify_slice(mac).is_ok()
    }
}

impl Seal<'_> {
    /// Returns the MAC.
    pub fn mac(&self, key: &MacKey) -> Tag {
        self.started(key).finalize().into_bytes().into()
    }

    /// Returns whether this is the MAC. Takes the same time for all bytes.
    pub fn is_mac(&self, key: &MacKey, mac: &[u8]) -> bool {
        self.started(key).verify_slice(mac).is_ok()
    }

    fn started(&self, key: &MacKey) -> Hmac<Sha256> {
        let mut record = Record::default();
        record.begin();
        record.number(1, Some(self.seal_id));
        record.number(2, Some(self.first_id));
        record.number(3, Some(self.last_id));
        record.number(4, Some(self.row_count));
        record.number(5, self.newest_at);
        record.bytes(6, Some(self.rows_mac));
        record.ranges(7, self.holes.ranges());
        record.ranges(8, self.late.ranges());
        record.number(9, Some(self.closed_seal));
        record.number(10, Some(self.pruned_seal));
        record.number(11, self.next_xid);
        record.number(12, Some(self.system_identifier));
        record.number(13, Some(self.database));
        record.number(14, Some(self.timeline));
        record.number(15, Some(self.key_id.into()));
        record.number(16, Some(self.sealed_at));
        record.bytes(17, Some(self.previous_mac));
        record.end();
        let mut mac = key.seals.clone();
        mac.update(&record.0);
        mac
    }
}

/// The bytes of one row or seal.
#[derive(Default)]
struct Record(Vec<u8>);

impl Record {
    fn begin(&mut self) {
        self.0.clear();
        self.0.push(VERSION);
    }

    fn end(&mut self) {
        self.0.push(END);
    }

    fn number(&mut self, tag: u8, value: Option<i64>) {
        self.bytes(tag, value.map(i64::to_be_bytes).as_ref().map(<[u8; 8]>::as_slice));
    }

    fn text(&mut self, tag: u8, value: Option<&str>) {
        self.bytes(tag, value.map(str::as_bytes));
    }

    fn bytes(&mut self, tag: u8, value: Option<&[u8]>) {
        if let Some(bytes) = value {
            self.head(tag, bytes.len());
            self.0.extend_from_slice(bytes);
        }
    }

    fn ranges(&mut self, tag: u8, ranges: &[IdRange]) {
        self.head(tag, 16 * ranges.len());
        for range in ranges {
            self.0.extend(range.first.to_be_bytes());
            self.0.extend(range.last.to_be_bytes());
        }
    }

    /// Adds a JSON text without the white space between its parts, which is the only part of it that PostgreSQL chooses.
    fn json(&mut self, tag: u8, value: Option<&str>) {
        let Some(text) = value else { return };
        let (mut in_string, mut escaped) = (false, false);
        let is_part = |byte: &u8| {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = in_string,
                b'"' => in_string = !in_string,
                b' ' | b'\n' | b'\r' | b'\t' => return in_string,
                _ => {}
            }
            true
        };
        let start = self.0.len();
        self.head(tag, 0);
        self.0.extend(text.bytes().filter(is_part));
        let body = start + HEAD;
        let len = ((self.0.len() - body) as u64).to_be_bytes();
        if let Some(place) = self.0.get_mut(start + 1..body) {
            place.copy_from_slice(&len);
        }
    }

    fn head(&mut self, tag: u8, len: usize) {
        self.0.push(tag);
        self.0.extend((len as u64).to_be_bytes());
    }
}
