//! The MACs of the audit trail, the wrapping of their keys, and sets of ids.

use std::collections::BTreeSet;

use hex_literal::hex;
use proptest::prelude::*;
use seal::trail::{AuditRow, RowsMac, Seal};
use seal::{DataKey, IdRange, IdSet, KeyId, MacKey, MasterKey};
use zeroize::Zeroizing;

const NONCE: [u8; 12] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11];
const ID: KeyId = KeyId::new(7);

/// 2030-01-01 12:00:00.000005 UTC.
const AT: i64 = 946_814_400_000_005;

/// A master key of bytes 0 to 31, and a key of the trail of bytes 32 to 63.
fn keys() -> (MasterKey, MacKey) {
    let bytes = |first: u8| Zeroizing::new(std::array::from_fn(|n| first + n as u8));
    (MasterKey::from_bytes(bytes(0)), MacKey::from_random(bytes(32)))
}

// All vectors are computed by tests/cluster/support/trail.py, with Python's hmac and cryptography.
const WRAPPED: [u8; 61] = hex!(
    "01 000102030405060708090a0b 9011efa39d134ee87db5eb87f26500441a3a30fc13a784a004fea20f1c14e454b0cd444813fafa72a2414f"
    "23fe476b22"
);
const ROWS: [u8; 32] = hex!("306fd6bafa06ca451b3ff769cfb91ca8649fe587acc78a5cdd115a1c1deb44a1");
const NO_ROWS: [u8; 32] = hex!("a6e1273f42ca60a68ced2ca3b4a3844aa28220eed1b0febe1f346e229ad25d06");

fn rows() -> [AuditRow<'static>; 3] {
    let nothing = AuditRow {
        id: 4,
        at: None,
        event: None,
        user_id: None,
        device: None,
        actor: None,
        db_user: None,
        client_addr: Some(&hex!("03400010 20010db8000000000000000000000001")),
        application_name: None,
        detail: Some("[]"),
    };
    [
        AuditRow {
            id: 1,
            at: Some(AT),
            event: Some("failed"),
            user_id: Some("alice"),
            device: Some("phone"),
            actor: Some("web"),
            db_user: Some("app"),
            client_addr: Some(&[2, 32, 0, 4, 192, 0, 2, 7]),
            application_name: Some("psql"),
            detail: Some(r#"{"of": "recovery_codes", "x y": "a \"b\" {c: d}  é"}"#),
        },
        AuditRow {
            id: 3,
            at: Some(AT),
            event: Some("locked"),
            user_id: None,
            device: Some(""),
            actor: Some(""),
            db_user: Some("app"),
            client_addr: None,
            application_name: Some(""),
            detail: None,
        },
        nothing,
    ]
}

fn mac_of(rows: &[AuditRow]) -> [u8; 32] {
    let mut mac = RowsMac::new(&keys().1);
    rows.iter().for_each(|row| mac.add(row));
    mac.finish()
}

fn ids(text: &str) -> IdSet {
    IdSet::parse(text).unwrap()
}

fn sealed<'a>(holes: &'a IdSet, late: &'a IdSet) -> Seal<'a> {
    Seal {
        seal_id: 2,
        first_id: 1,
        last_id: 4,
        row_count: 3,
        newest_at: Some(AT),
        rows_mac: &ROWS,
        holes,
        late,
        closed_seal: 1,
        pruned_seal: 0,
        next_xid: None,
        system_identifier: -7,
        database: 16384,
        timeline: 1,
        key_id: 7,
        sealed_at: AT,
        previous_mac: &[0; 32],
    }
}

#[test]
fn the_macs_are_the_documented_ones() {
    assert_eq!(mac_of(&rows()), ROWS);
    assert_eq!(mac_of(&[]), NO_ROWS);
    let (holes, late) = (ids("{[2,3)}"), ids("{[-5,-3),[0,1)}"));
    assert_eq!(
        sealed(&holes, &late).mac(&keys().1),
        hex!("236bf01258915db818b2216b6c8eac1fb105d98ed12c8893315eeef601d03d2a")
    );
    let none = IdSet::default();
    let other = Seal { next_xid: Some(1 << 40), newest_at: None, ..sealed(&none, &none) };
    assert_eq!(other.mac(&keys().1), hex!("e6a84539d61b6167b9666e36c8ac804fde33324ff40b9642e902337c30391ee7"));
}

#[test]
fn only_the_mac_itself_is_the_mac() {
    let (_, key) = keys();
    let begun = || {
        let mut mac = RowsMac::new(&key);
        rows().iter().for_each(|row| mac.add(row));
        mac
    };
    assert!(begun().is(&ROWS));
    assert!(!begun().is(&ROWS[..31]) && !begun().is(&[]) && !begun().is(&NO_ROWS));
    let none = IdSet::default();
    let seal = sealed(&none, &none);
    assert!(seal.is_mac(&key, &seal.mac(&key)));
    assert!(!seal.is_mac(&key, &ROWS));
    let other = MacKey::from_random(Zeroizing::new([1; 32]));
    assert!(!seal.is_mac(&other, &seal.mac(&key)));
}

/// Every column, by itself: another value, NULL, and an empty one differ.
#[test]
fn every_column_of_a_row_counts() {
    type Change = fn(&mut AuditRow<'static>);
    let changes: &[Change] = &[
        |_| (),
        |row| row.id = 2,
        |row| row.at = Some(AT + 1),
        |row| row.at = None,
        |row| row.event = Some("locked"),
        |row| row.event = None,
        |row| row.user_id = Some("bob"),
        |row| row.user_id = Some(""),
        |row| row.user_id = None,
        |row| row.device = Some("alice"),
        |row| row.device = None,
        |row| row.actor = Some("other"),
        |row| row.actor = None,
        |row| row.db_user = Some("other"),
        |row| row.db_user = None,
        |row| row.client_addr = Some(&[2, 24, 0, 4, 192, 0, 2, 7]),
        |row| row.client_addr = None,
        |row| row.application_name = Some("other"),
        |row| row.application_name = None,
        |row| row.detail = Some("{}"),
        |row| row.detail = Some(r#"{"of": "recovery_codes", "x y": "a \"b\" {c: d} é"}"#),
        |row| row.detail = None,
        // What moves from one column to the next.
        |row| (row.user_id, row.device) = (Some("alicep"), Some("hone")),
        |row| (row.user_id, row.device) = (row.device, row.user_id),
    ];
    let mut macs: Vec<_> = changes
        .iter()
        .map(|change| {
            let [mut row, ..] = rows();
            change(&mut row);
            mac_of(&[row])
        })
        .collect();
    macs.sort_unstable();
    macs.dedup();
    assert_eq!(macs.len(), changes.len());
}

#[test]
fn the_order_of_rows_counts() {
    let [a, b, _] = rows();
    assert_ne!(mac_of(&[a, b]), {
        let [a, b, _] = rows();
        mac_of(&[b, a])
    });
}

#[test]
fn every_column_of_a_seal_counts() {
    let (none, one, two) = (IdSet::default(), ids("{[2,3)}"), ids("{[2,3),[5,6)}"));
    let unchanged = || sealed(&none, &none);
    let seals = [
        unchanged(),
        Seal { seal_id: 3, ..unchanged() },
        Seal { first_id: 2, ..unchanged() },
        Seal { last_id: 5, ..unchanged() },
        Seal { row_count: 4, ..unchanged() },
        Seal { newest_at: None, ..unchanged() },
        Seal { rows_mac: &NO_ROWS, ..unchanged() },
        Seal { holes: &one, ..unchanged() },
        Seal { holes: &two, ..unchanged() },
        Seal { late: &one, ..unchanged() },
        Seal { closed_seal: 2, ..unchanged() },
        Seal { pruned_seal: 1, ..unchanged() },
        Seal { next_xid: Some(0), ..unchanged() },
        Seal { system_identifier: 7, ..unchanged() },
        Seal { database: 16385, ..unchanged() },
        Seal { timeline: 2, ..unchanged() },
        Seal { key_id: 8, ..unchanged() },
        Seal { sealed_at: AT + 1, ..unchanged() },
        Seal { previous_mac: &ROWS, ..unchanged() },
    ];
    let macs: BTreeSet<_> = seals.iter().map(|seal| seal.mac(&keys().1)).collect();
    assert_eq!(macs.len(), seals.len());
}

#[test]
fn the_white_space_that_postgresql_puts_into_json_does_not_count() {
    let of = |detail| {
        let [row, ..] = rows();
        mac_of(&[AuditRow { detail: Some(detail), ..row }])
    };
    assert_eq!(of(r#"{"a": [1, 2], "b": "c"}"#), of("{\"a\":[1,2],\n\t\"b\" :\"c\"}"));
    assert_ne!(of(r#"{"a": "b c"}"#), of(r#"{"a": "bc"}"#));
    assert_ne!(of(r#"{"a": "\\", "b": " "}"#), of(r#"{"a": "\\", "b": ""}"#));
}

#[test]
fn the_wrapped_key_is_the_documented_one() {
    let (master, key) = keys();
    assert_eq!(key.wrap(&master, ID, NONCE).unwrap(), WRAPPED);
    let opened = MacKey::unwrap(&master, ID, &WRAPPED).ok().unwrap();
    assert_eq!(RowsMac::new(&opened).finish(), NO_ROWS);
}

#[test]
fn a_wrapped_key_opens_nowhere_else() {
    let (master, _) = keys();
    for bit in 0..WRAPPED.len() * 8 {
        let mut flipped = WRAPPED;
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(MacKey::unwrap(&master, ID, &flipped).is_err(), "bit {bit}");
    }
    assert!(MacKey::unwrap(&master, KeyId::new(8), &WRAPPED).is_err());
    assert!(MacKey::unwrap(&MasterKey::from_bytes(Zeroizing::new([1; 32])), ID, &WRAPPED).is_err());
    assert!(DataKey::unwrap(&master, ID, &WRAPPED).is_err());
    let data_key = DataKey::from_random(Zeroizing::new([2; 32])).wrap(&master, ID, NONCE).unwrap();
    assert!(MacKey::unwrap(&master, ID, &data_key).is_err());
}

#[test]
fn texts_that_are_no_sets_are_refused() {
    for text in ["", "{", "}", "{[1,2]}", "{(1,2)}", "{[1,)}", "{(,)}", "{[1,2", "[1,2)", "{[a,2)}", "{[1,2),x}"] {
        assert_eq!(IdSet::parse(text), None, "{text}");
    }
    assert_eq!(IdSet::parse("{}"), Some(IdSet::default()));
}

fn set_of(numbers: &BTreeSet<i64>) -> IdSet {
    let mut set = IdSet::default();
    numbers.iter().for_each(|id| set.push(*id, *id));
    set
}

fn numbers_of(set: &IdSet) -> BTreeSet<i64> {
    set.ranges().iter().flat_map(|IdRange { first, last }| *first..=*last).collect()
}

fn numbers() -> impl Strategy<Value = BTreeSet<i64>> {
    prop::collection::btree_set(-20_i64..60, 0..60)
}

proptest! {
    #[test]
    fn sets_do_what_sets_of_numbers_do(a in numbers(), b in numbers(), id in -25_i64..65) {
        let (x, y) = (set_of(&a), set_of(&b));
        prop_assert_eq!(numbers_of(&x.union(&y)), a.union(&b).copied().collect::<BTreeSet<_>>());
        prop_assert_eq!(numbers_of(&x.minus(&y)), a.difference(&b).copied().collect::<BTreeSet<_>>());
        prop_assert_eq!(x.contains(id), a.contains(&id));
        prop_assert_eq!(x.count(), a.len() as i64);
        prop_assert_eq!(IdSet::parse(&x.to_string()), Some(x.clone()));
        prop_assert_eq!(x.bounds().map(|range| (range.first, range.last)), a.first().copied().zip(a.last().copied()));
        for set in [&x, &x.union(&y), &x.minus(&y)] {
            for pair in set.ranges().windows(2) {
                prop_assert!(pair[0].last + 1 < pair[1].first);
            }
        }
    }
}
