//! The otpauth URI.

use otp::{
    Algorithm, Digits, OtpauthUri, ParameterError, Parameters, Period, ReadUri, Secret, SecretError, UriError,
    clean_account,
};
use proptest::prelude::*;

const SECRET: &str = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ";

fn build(issuer: Option<&str>, account: &str, parameters: Parameters) -> String {
    let secret = Secret::from_slice(b"12345678901234567890");
    let uri = OtpauthUri { issuer: issuer.map(str::to_owned), account: account.to_owned(), secret, parameters };
    uri.build().to_string()
}

/// What a URI says: issuer, account, base32 of the secret, parameters.
type Parts = (Option<String>, Option<String>, String, Parameters);

fn read(uri: &str) -> Result<Parts, UriError> {
    ReadUri::parse(uri).map(|uri| (uri.issuer, uri.account, uri.secret.to_base32().to_string(), uri.parameters))
}

/// Issuer and account of `otpauth://totp/{label}?secret=…{more}`; an absent one is empty. Names stop no import.
fn names(label: &str, more: &str) -> (String, String) {
    let (issuer, account, ..) = read(&format!("otpauth://totp/{label}?secret={SECRET}{more}")).unwrap();
    (issuer.unwrap_or_default(), account.unwrap_or_default())
}

fn named(issuer: &str, account: &str) -> (String, String) {
    (issuer.to_owned(), account.to_owned())
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
fn missing_parameters_take_the_defaults() {
    let expected = (None, Some("alice".to_owned()), SECRET.to_owned(), Parameters::default());
    assert_eq!(read(&format!("otpauth://totp/alice?secret={SECRET}")), Ok(expected));
}

#[test]
fn case_and_order_do_not_matter_and_unknown_parameters_are_ignored() {
    let expected = (
        Some("Ex".to_owned()),
        Some("alice".to_owned()),
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
fn the_issuer_is_in_the_label_or_the_parameter_which_wins() {
    assert_eq!(names("alice", ""), named("", "alice"));
    assert_eq!(names("alice", "&issuer="), named("", "alice"));
    assert_eq!(names(":alice", ""), named("", "alice"));
    assert_eq!(names("Ex:alice", ""), named("Ex", "alice"));
    assert_eq!(names("Ex:alice", "&issuer="), named("Ex", "alice"));
    assert_eq!(names("alice", "&issuer=Ex"), named("Ex", "alice"));
    assert_eq!(names("Ex:alice", "&issuer=Ex"), named("Ex", "alice"));
    assert_eq!(names("Ex%20Corp%3Aalice", "&issuer=Ex%20Corp"), named("Ex Corp", "alice"));
    assert_eq!(names("Ex:alice", "&issuer=Other"), named("Other", "alice"));
    assert_eq!(names("Ex:alice", "&issuer=ex"), named("ex", "alice"));
    assert_eq!(names("Some+Company%3aa%40example.net", "&issuer=Microsoft"), named("Microsoft", "a@example.net"));
    // The Key URI format allows spaces after the colon.
    assert_eq!(names("Ex:%20%20alice%20b", ""), named("Ex", "alice b"));
    assert_eq!(names("Ex:  alice", ""), named("Ex", "alice"));
    // Given twice, the last one that says anything.
    assert_eq!(names("alice", "&issuer=A&Issuer=B&issuer="), named("B", "alice"));
}

#[test]
fn a_plus_is_a_space_only_where_the_label_has_one() {
    assert_eq!(names("alice+tag%40example.com", "&issuer=A+B"), named("A+B", "alice+tag@example.com"));
    assert_eq!(names("A+B:alice", "&issuer=A+B"), named("A+B", "alice"));
    assert_eq!(names("Test%20Issuer:alice", "&issuer=Test+Issuer"), named("Test Issuer", "alice"));
    assert_eq!(names("Test Issuer:alice", "&issuer=Test+Issuer"), named("Test Issuer", "alice"));
    assert_eq!(names("C%2B%2B%20Club:alice", "&issuer=C%2B%2B+Club"), named("C++ Club", "alice"));
    assert_eq!(names("Other%20Issuer:alice", "&issuer=Test+Issuer"), named("Test+Issuer", "alice"));
    assert_eq!(names("Test%20Issuer", "&issuer=Test+Issuer"), named("Test+Issuer", "Test Issuer"));
}

#[test]
fn an_absent_name_is_none() {
    for label in ["", "%20", ":", ":%20", "%00", "%E2%80%AE", ":::", " : : "] {
        assert_eq!(names(label, "").1, "", "{label:?}");
    }
    assert_eq!(names("Heroku:", "&issuer=Heroku"), named("Heroku", ""));
    assert_eq!(names("Ex:alice:", ""), named("Ex", "alice"));
    assert_eq!(names("Ex:alice%3A%3A", ""), named("Ex", "alice"));
    let (issuer, account, ..) = read(&format!("otpauth://totp?secret={SECRET}&image=https://example.com/a")).unwrap();
    assert_eq!((issuer, account), (None, None));
}

#[test]
fn names_are_cleaned_whatever_they_are() {
    assert_eq!(
        names("Teleport:a@proxy.example.com:3080", "&issuer=Teleport"),
        named("Teleport", "a@proxy.example.com 3080")
    );
    assert_eq!(names("Ex:team%3Aalice", "&issuer=a%3Ab"), named("a b", "team alice"));
    assert_eq!(names("al%00i%0Ace%C2%85", "&issuer=%09Ex"), named("Ex", "alice"));
    assert_eq!(names("%E2%80%AEalice", "&issuer=E%E2%81%A6x"), named("Ex", "alice"));
    for (broken, name) in [("100%", "100"), ("%4", "4"), ("%4G", "4G"), ("%%41", "A"), ("a%zz", "azz"), ("%+1", "+1")] {
        assert_eq!(names(broken, &format!("&issuer={broken}")), named(name, name), "{broken:?}");
    }
    for not_utf8 in ["a%C3", "a%FF", "%FFa", "a%ED%A0%80", "a%C0%80"] {
        assert_eq!(names(not_utf8, &format!("&issuer={not_utf8}")), named("a", "a"), "{not_utf8:?}");
    }
    assert_eq!(names("%41%6c%6C", ""), named("", "All"));
    assert_eq!(names(&"x".repeat(4000), "").1, "x".repeat(256));
    assert_eq!(names(&format!("x{}", "%C3%A9".repeat(200)), "").1, format!("x{}", "é".repeat(127)));
}

#[test]
fn broken_encoding_is_refused_where_it_decides_and_ignored_elsewhere() {
    for bad in ["%", "%4", "%4G", "%G4", "a%", "%%41", "%+1", "%C3", "%FF", "%ED%A0%80", "%C0%80", "%é"] {
        assert_eq!(read(&format!("otpauth://totp/a?secret={bad}")), Err(UriError::Encoding), "{bad:?}");
        for name in ["algorithm", "digits", "period"] {
            assert_eq!(parameters(&format!("&{name}={bad}")), Err(UriError::Encoding), "{name}={bad:?}");
        }
        assert_eq!(parameters(&format!("&image={bad}&{bad}")), Ok(Parameters::default()), "{bad:?}");
    }
}

#[test]
fn an_empty_fragment_is_ignored_and_none_hides_a_parameter() {
    assert_eq!(names("Ex:a", "&issuer=Ex#"), named("Ex", "a"));
    assert_eq!(parameters("&digits=8#").map(|p| p.digits.get()), Ok(8));
    assert_eq!(names("a#b", "&issuer=No. #1"), named("No. #1", "a#b"));
    assert_eq!(parameters("&digits=8#top"), Err(UriError::Parameter(ParameterError::Digits)));
    assert_eq!(read(&format!("otpauth://totp/a?secret={SECRET}#x")), Err(UriError::Secret(SecretError::Symbol)));
    for bad in ["&issuer=A#1&digits=8", "#digits=8", "#?", "#&"] {
        assert_eq!(parameters(bad), Err(UriError::Malformed), "{bad:?}");
    }
}

#[test]
fn other_uris_are_refused() {
    for bad in
        ["", "otpauth", "otpauth:", "otpauth://", "otpauth://totp", "otpauth:/totp/a?secret=A", "é", "://", ":///"]
    {
        assert_eq!(read(bad), Err(UriError::Malformed), "{bad:?}");
    }
    assert_eq!(read(&format!("https://totp/a?secret={SECRET}")), Err(UriError::Malformed));
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
fn a_parameter_that_changes_the_codes_is_not_ignored() {
    for bad in
        ["&encoder=steam", "&Encoder=STEAM", "&encoder=%73team", "&digits=5&encoder=steam", "&encoder=&encoder=x"]
    {
        assert_eq!(parameters(bad), Err(UriError::Encoder), "{bad:?}");
    }
    assert_eq!(parameters("&encoder=&encoder"), Ok(Parameters::default()));
}

#[test]
fn what_is_escaped_for_html_is_refused_where_it_decides() {
    for bad in
        ["&amp;digits=8", "&amp;period=60", "&issuer=Ex&AMP;Algorithm=SHA256", "&amp;secret=A", "&amp;encoder=steam"]
    {
        assert_eq!(parameters(bad), Err(UriError::Html), "{bad:?}");
    }
    assert_eq!(read(&format!("otpauth://totp/a?issuer=Ex&amp;secret={SECRET}")), Err(UriError::Html));
    assert_eq!(names("Ex:a", "&amp;issuer=Ex&amp;image=x"), named("Ex", "a"));
    assert_eq!(names("Ex:a", "&issuer=R&amp;D"), named("R", "a"));
}

#[test]
fn known_parameters_come_once() {
    for name in ["secret=A", "Secret=", "algorithm=SHA1", "digits=6", "PERIOD=30", "digits="] {
        let uri = format!("otpauth://totp/a?secret={SECRET}&{name}&{name}");
        assert_eq!(read(&uri), Err(UriError::Duplicate), "{name}");
    }
}

#[test]
fn parameters_obey_their_ranges() {
    assert_eq!(parameters("&digits=7").map(|p| p.digits.get()), Ok(7));
    assert_eq!(parameters("&digits=06").map(|p| p.digits.get()), Ok(6));
    for bad in ["5", "9", "+6", "-6", "6.0", "six", " 6", "６", "4294967302", "99999999999999999999"] {
        assert_eq!(parameters(&format!("&digits={bad}")), Err(UriError::Parameter(ParameterError::Digits)), "{bad:?}");
    }
    assert_eq!(parameters("&period=120").map(|p| p.period.get()), Ok(120));
    for bad in ["0", "14", "121", "+30", "30s", "65566"] {
        assert_eq!(parameters(&format!("&period={bad}")), Err(UriError::Parameter(ParameterError::Period)), "{bad:?}");
    }
    for bad in ["MD5", "SHA2", "SHA1%20"] {
        let error = UriError::Parameter(ParameterError::Algorithm);
        assert_eq!(parameters(&format!("&algorithm={bad}")), Err(error), "{bad:?}");
    }
}

#[test]
fn an_empty_parameter_is_as_if_absent() {
    assert_eq!(parameters("&algorithm=&digits=&period=&issuer=&image=&"), Ok(Parameters::default()));
    assert_eq!(parameters("&algorithm&digits&period"), Ok(Parameters::default()));
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

/// Names that are clean: no bidirectional character, no leading space.
fn label() -> impl Strategy<Value = String> {
    "[^:\\p{Cc} ][^:\\p{Cc}]{0,40}".prop_filter("rule", |label| clean_account(label).as_ref() == Some(label))
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
        prop_assert_eq!(read(&built), Ok((issuer, Some(account), base32, parameters)));
    }

    #[test]
    fn no_text_panics(text in any::<String>(), label in any::<String>(), query in "([a-z]{0,6}[=&%+0-9A-Zé]{0,3}){0,20}") {
        let _ = read(&text);
        let _ = read(&format!("otpauth://totp/{label}?secret={SECRET}&{query}"));
    }
}
