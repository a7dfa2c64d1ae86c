//! Reads otpauth URIs, one a line, and prints what the `url` crate finds in each, with tabs between:
//! issuer of the label, account, then the values of secret, issuer, algorithm, digits and period.

use std::collections::HashMap;
use std::io::stdin;

use url::Url;

fn main() {
    for line in stdin().lines() {
        let line = line.expect("standard input can be read");
        println!("{}", fields(&line).expect("a line is an otpauth URI").join("\t"));
    }
}

fn fields(uri: &str) -> Option<Vec<String>> {
    let uri = Url::parse(uri).ok()?;
    if uri.scheme() != "otpauth" || uri.host_str() != Some("totp") {
        return None;
    }
    let (issuer, account) = match uri.path().strip_prefix('/')?.split_once(':') {
        Some((issuer, account)) => (decode(issuer), decode(account)),
        None => (String::new(), decode(uri.path().strip_prefix('/')?)),
    };
    let parameters: HashMap<_, _> = uri.query_pairs().into_owned().collect();
    let values = ["secret", "issuer", "algorithm", "digits", "period"]
        .map(|name| parameters.get(name).cloned().unwrap_or_default());
    Some([issuer, account].into_iter().chain(values).collect())
}

/// The `url` crate decodes queries only: a path is read as the query that has the same characters.
fn decode(path: &str) -> String {
    let query = format!("text={}", path.replace('+', "%2B").replace('&', "%26"));
    url::form_urlencoded::parse(query.as_bytes()).map(|(_, value)| value.into_owned()).collect()
}
