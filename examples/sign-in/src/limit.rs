//! How many forms an address may send in a minute. It slows who tries many passwords; pg_totp counts codes by itself.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

pub struct PerMinute {
    most: u32,
    seen: Mutex<(Instant, HashMap<IpAddr, u32>)>,
}

impl PerMinute {
    pub fn new(most: u32) -> Self {
        Self { most, seen: Mutex::new((Instant::now(), HashMap::new())) }
    }

    pub fn allows(&self, address: IpAddr) -> bool {
        let mut seen = self.seen.lock().expect("nothing panics while it is held");
        if seen.0.elapsed() > Duration::from_secs(60) {
            *seen = (Instant::now(), HashMap::new()); // so it never grows beyond the addresses of a minute
        }
        let count = seen.1.entry(network(address)).or_default();
        *count += 1;
        *count <= self.most
    }
}

/// One user of IPv6 has at least 2^64 addresses.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(it) => IpAddr::V6((it.to_bits() & !u128::from(u64::MAX)).into()),
        it => it,
    }
}
