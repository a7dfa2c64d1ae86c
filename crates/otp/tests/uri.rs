//! The otpauth URI.

use otp::{
    Algorithm, Digits, OtpauthUri, ParameterError, Parameters, Period, Secret, SecretError, UriError, check_account,
    check_label,
};
use proptest::prelude::*;

const SECRET: &str = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ";

fn build(issuer: Option<&str>, account: &str, parameters: Parameters) -> String {
    let secret = Secret::from_slice(b"12345678901234567890");
    let uri = OtpauthUri { issuer: issuer.map(str::to_owned), account: account.to_owned(), secret, parameters };
    uri.build().to_string()
}

/// What a URI says: issuer, account, base32 of the secret, parameters.
type Parts = (Option<String>, String, String, Parameters);

fn read(uri: &str) -> Result<Parts, UriError> {
    OtpauthUri::parse(uri).map(|uri| (uri.issuer, uri.account, uri.secret.to_base32().to_string(), uri.parameters))
}

/// Issuer and account of `otpauth://totp/{label}?secret=…{more}`.
fn names(label: &str, more: &str) -> Result<(Option<String>, String), UriError> {
    read(&format!("otpauth://totp/{label}?secret={SECRET}{more}")).map(|(issuer, account, ..)| (issuer, account))
}

fn named(issuer: &str, account: &str) -> Result<(Option<String>, String), UriError> {
    Ok((Some(issuer.to_owned()), account.to_owned()))
}

/// The parameters of `otpauth://totp/a?secret=…{more}`.
fn parameters(more: &str) -> Result<Parameters, UriError> {
    read(&format!("otpauth://totp/a?secret={SECRET}{more}")).map(|parts| parts.3)
}

#[test]
fn the_form_of_the_contract() {
    assert_eq!(
        build(Some("Example Corp"), "alice@example.com", Parameters::default()),
        format!(
            "otpauth://totp/Example%20Corp:alice%40example.com?secret={SECRET}&issuer=Example%20Corp\
             &algorithm=SHA1&digits=6&period=30"
        )
    );
    let parameters =
        Parameters { algorithm: Algorithm::Sha512, digits: Digits::new(8).unwrap(), period: Period::new(120).unwrap() };
    assert_eq!(
        build(None, "alice", parameters),
        format!("otpauth://totp/alice?secret={SECRET}&algorithm=SHA512&digits=8&period=120")
    );
}

#[test]
fn everything_but_the_unreserved_characters_is_encoded() {
    // RFC 3986 section 2.3, byte by byte.
    for byte in 0x20..0x7fu8 {
        let name = char::from(byte).to_string();
        let encoded =
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) { name.clone() } else { format!("%{byte:02X}") };
        let uri = build(Some(&name), &name, Parameters::default());
        assert!(uri.starts_with(&format!("otpauth://totp/{encoded}:{encoded}?secret=")), "{uri}");
        assert!(uri.contains(&format!("&issuer={encoded}&")), "{uri}");
    }
    assert!(build(None, "Zoë €", Parameters::default()).starts_with("otpauth://totp/Zo%C3%AB%20%E2%82%AC?"));
}

#[test]
fn building_grows_no_buffer() {
    // The worst label: every byte becomes three.
    let label = " ".repeat(256);
    let secret = Secret::from_slice(&[0; 128]);
    let parameters =
        Parameters { algorithm: Algorithm::Sha256, digits: Digits::new(8).unwrap(), period: Period::new(120).unwrap() };
    let uri = OtpauthUri { issuer: Some(label.clone()), account: label, secret, parameters }.build();
    let asked = 100 + 3 * 3 * 256 + 205;
    assert!(uri.len() <= asked && uri.capacity() == asked, "{} of {}", uri.len(), uri.capacity());
}

#[test]
fn labels_have_a_rule() {
    for good in ["a", "Example Corp", "alice@example.com", "Zoë", &"x".repeat(256), "50%", "a/b?c#d&e=f"] {
        assert_eq!(check_label(good), Ok(()));
    }
    assert_eq!(check_label(""), Err(UriError::EmptyLabel));
    assert_eq!(check_label(&"x".repeat(257)), Err(UriError::LongLabel));
    assert_eq!(check_label(&"é".repeat(129)), Err(UriError::LongLabel));
    assert_eq!(check_label(&"x".repeat(1 << 20)), Err(UriError::LongLabel));
    for bad in [":", "a:b", "a:", ":b"] {
        assert_eq!(check_label(bad), Err(UriError::Colon));
    }
    for bad in ["\0", "a\nb", "a\tb", "\u{7f}", "\u{85}", "a\r"] {
        assert_eq!(check_label(bad), Err(UriError::Control));
    }
}

#[test]
fn missing_parameters_take_the_defaults() {
    let expected = (None, "alice".to_owned(), SECRET.to_owned(), Parameters::default());
    assert_eq!(read(&format!("otpauth://totp/alice?secret={SECRET}")), Ok(expected));
}

#[test]
fn case_and_order_do_not_matter_and_unknown_parameters_are_ignored() {
    let expected = (
        Some("Ex".to_owned()),
        "alice".to_owned(),
        SECRET.to_owned(),
        Parameters { algorithm: Algorithm::Sha256, digits: Digits::new(8).unwrap(), period: Period::new(60).unwrap() },
    );
    for uri in [
        format!("otpauth://totp/Ex:alice?secret={SECRET}&issuer=Ex&algorithm=SHA256&digits=8&period=60"),
        format!("OTPAUTH://TOTP/Ex:alice?PERIOD=60&Digits=8&ALGORITHM=hmac-sha-256&ISSUER=Ex&Secret={SECRET}"),
        format!(
            "otpauth://totp/Ex%3Aalice?image=a%20b&image=c&&counter=1&x&secret={SECRET}&algorithm=sha256&digits=8&period=60&"
        ),
        format!(
            " \notpauth://totp/alice?secret={}&issuer=Ex&algorithm=SHA256&digits=8&period=60\r\n",
            SECRET.to_lowercase()
        ),
    ] {
        assert_eq!(read(&uri).as_ref(), Ok(&expected), "{uri}");
    }
}

#[test]
fn the_issuer_is_in_the_label_or_the_parameter_or_both_alike() {
    assert_eq!(names("alice", ""), Ok((None, "alice".to_owned())));
    assert_eq!(names("alice", "&issuer="), Ok((None, "alice".to_owned())));
    assert_eq!(names(":alice", ""), Ok((None, "alice".to_owned())));
    assert_eq!(names("Ex:alice", ""), named("Ex", "alice"));
    assert_eq!(names("Ex:alice", "&issuer="), named("Ex", "alice"));
    assert_eq!(names("alice", "&issuer=Ex"), named("Ex", "alice"));
    assert_eq!(names("Ex:alice", "&issuer=Ex"), named("Ex", "alice"));
    assert_eq!(names("Ex%20Corp%3Aalice", "&issuer=Ex%20Corp"), named("Ex Corp", "alice"));
    for (label, issuer) in [("Ex:alice", "Other"), ("Ex:alice", "ex"), ("Ex:alice", "Ex%20")] {
        assert_eq!(names(label, &format!("&issuer={issuer}")), Err(UriError::IssuerMismatch));
    }
    // The Key URI format allows spaces after the colon.
    assert_eq!(names("Ex:%20%20alice%20b", ""), named("Ex", "alice b"));
    assert_eq!(names("Ex:  alice", ""), named("Ex", "alice"));
}

#[test]
fn a_plus_is_a_plus() {
    assert_eq!(names("alice+tag%40example.com", "&issuer=A+B"), named("A+B", "alice+tag@example.com"));
}

#[test]
fn labels_of_a_uri_obey_the_rule() {
    assert_eq!(names("", ""), Err(UriError::EmptyLabel));
    assert_eq!(names("Ex:", ""), Err(UriError::EmptyLabel));
    assert_eq!(names("Ex:%20", ""), Err(UriError::EmptyLabel));
    assert_eq!(names("Ex:a:b", ""), Err(UriError::Colon));
    assert_eq!(names("alice", "&issuer=a%3Ab"), Err(UriError::Colon));
    assert_eq!(names("al%00ice", ""), Err(UriError::Control));
    assert_eq!(names("alice", "&issuer=%0A"), Err(UriError::Control));
    assert_eq!(names(&"x".repeat(257), ""), Err(UriError::LongLabel));
}

#[test]
fn broken_encoding_is_refused() {
    for bad in ["%", "%4", "%4G", "%G4", "a%", "%%41", "%+1", "%C3", "%FF", "%ED%A0%80", "%C0%80", "%é"] {
        assert_eq!(names(bad, ""), Err(UriError::Encoding), "{bad:?}");
        assert_eq!(names("a", &format!("&issuer={bad}")), Err(UriError::Encoding), "{bad:?}");
        assert_eq!(read(&format!("otpauth://totp/a?secret={bad}")), Err(UriError::Encoding), "{bad:?}");
    }
    assert_eq!(names("%41%6c%6C", ""), Ok((None, "All".to_owned())));
}

#[test]
fn other_uris_are_refused() {
    for bad in
        ["", "otpauth", "otpauth:", "otpauth://", "otpauth://totp", "otpauth:/totp/a?secret=A", "é", "://", ":///"]
    {
        assert_eq!(read(bad), Err(UriError::Malformed), "{bad:?}");
    }
    assert_eq!(read(&format!("https://totp/a?secret={SECRET}")), Err(UriError::Malformed));
    assert_eq!(read(&format!("otpauth://totp/a?secret={SECRET}#x")), Err(UriError::Malformed));
    assert_eq!(read(&format!("otpauth://totp/a#b?secret={SECRET}")), Err(UriError::Malformed));
    for kind in ["hotp", "HOTP", "steam", "", "totp2"] {
        assert_eq!(read(&format!("otpauth://{kind}/a?secret={SECRET}&counter=0")), Err(UriError::Type));
    }
    for bad in ["otpauth://totp/a", "otpauth://totp/a?", "otpauth://totp/a?secrets=A", "otpauth://totp/a?issuer=b"] {
        assert_eq!(read(bad), Err(UriError::NoSecret), "{bad:?}");
    }
    let long = |length: usize| {
        let uri = format!("otpauth://totp/a?secret={SECRET}&x=");
        let rest = "x".repeat(length - uri.len());
        uri + &rest
    };
    assert!(read(&long(8192)).is_ok());
    assert_eq!(read(&long(8193)), Err(UriError::TooLong));
    assert_eq!(read(&long(1 << 20)), Err(UriError::TooLong));
}

#[test]
fn known_parameters_come_once() {
    for name in ["secret=A", "Secret=", "issuer=a", "algorithm=SHA1", "digits=6", "PERIOD=30"] {
        let uri = format!("otpauth://totp/a?secret={SECRET}&{name}&{name}");
        assert_eq!(read(&uri), Err(UriError::Duplicate), "{name}");
    }
}

#[test]
fn parameters_obey_their_ranges() {
    assert_eq!(parameters("&digits=7").map(|p| p.digits.get()), Ok(7));
    assert_eq!(parameters("&digits=06").map(|p| p.digits.get()), Ok(6));
    for bad in ["", "5", "9", "+6", "-6", "6.0", "six", " 6", "６", "4294967302", "99999999999999999999"] {
        assert_eq!(parameters(&format!("&digits={bad}")), Err(UriError::Parameter(ParameterError::Digits)), "{bad:?}");
    }
    assert_eq!(parameters("&period=120").map(|p| p.period.get()), Ok(120));
    for bad in ["", "0", "14", "121", "+30", "30s", "65566"] {
        assert_eq!(parameters(&format!("&period={bad}")), Err(UriError::Parameter(ParameterError::Period)), "{bad:?}");
    }
    for bad in ["", "MD5", "SHA2"] {
        let error = UriError::Parameter(ParameterError::Algorithm);
        assert_eq!(parameters(&format!("&algorithm={bad}")), Err(error), "{bad:?}");
    }
}

#[test]
fn the_secret_is_read_as_base32() {
    let secret = |text: &str| read(&format!("otpauth://totp/a?secret={text}")).map(|parts| parts.2);
    assert_eq!(secret("gezd%20gnbv-gy3tqojq%3D%3D"), Ok("GEZDGNBVGY3TQOJQ".to_owned()));
    assert_eq!(secret("GEZDGNBVGY3TQOJQ=="), Ok("GEZDGNBVGY3TQOJQ".to_owned()));
    assert_eq!(secret("GEZD+GNBV"), Err(UriError::Secret(SecretError::Symbol)));
    assert_eq!(secret("0189"), Err(UriError::Secret(SecretError::Symbol)));
    assert_eq!(secret(""), Err(UriError::Secret(SecretError::TooShort)));
}

/// Names as [`check_label`] has them. A leading space is dropped after a colon.
fn label() -> impl Strategy<Value = String> {
    "[^:\\p{Cc} ][^:\\p{Cc}]{0,40}".prop_filter("rule", |label| check_label(label).is_ok())
}

#[test]
fn an_account_begins_with_no_space() {
    assert_eq!(check_account(" alice"), Err(UriError::LeadingSpace));
    assert_eq!(check_account("alice b"), Ok(()));
    assert_eq!(check_account(""), Err(UriError::EmptyLabel));
}

#[test]
fn percent_encoding_is_checked_in_unknown_parameters_too() {
    let uri = format!("otpauth://totp/a?secret={SECRET}&image=%2");
    assert_eq!(read(&uri).err(), Some(UriError::Encoding));
}

proptest! {
    #[test]
    fn what_is_built_is_read_back(
        issuer in prop::option::of(label()), account in label(),
        secret in prop::collection::vec(any::<u8>(), 10..=128),
        algorithm in prop::sample::select(Algorithm::ALL.to_vec()), digits in 6..=8, period in 15..=120,
    ) {
        let parameters = Parameters {
            algorithm,
            digits: Digits::new(digits).unwrap(),
            period: Period::new(period).unwrap(),
        };
        let secret = Secret::from_slice(&secret);
        let base32 = secret.to_base32().to_string();
        let built = OtpauthUri { issuer: issuer.clone(), account: account.clone(), secret, parameters }.build();
        prop_assert!(built.is_ascii());
        prop_assert_eq!(read(&built), Ok((issuer, account, base32, parameters)));
    }

    #[test]
    fn no_text_panics(text in any::<String>(), label in any::<String>(), query in "([a-z]{0,6}[=&%+0-9A-Zé]{0,3}){0,20}") {
        let _ = read(&text);
        let _ = read(&format!("otpauth://totp/{label}?secret={SECRET}&{query}"));
    }
}
