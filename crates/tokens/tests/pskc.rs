//! PSKC in clear: what its elements mean.

mod support;

use otp::{ParameterError, SecretError};
use proptest::prelude::*;
use support::{BASE32, BASE64, NO_KEYS, container, package, plain_secret, problem, read_with, row, shown};
use tokens::{Format::Pskc, MAX_DOCUMENT, Problem, ReadError, Token};

fn tokens(document: &str) -> Vec<Token> {
    read_with(Pskc, document, &NO_KEYS).unwrap()
}

fn error(document: &str) -> ReadError {
    read_with(Pskc, document, &NO_KEYS).err().unwrap()
}

/// The problem of a key with these elements.
fn of_key(elements: &str) -> Option<Problem> {
    problem(Pskc, &container(&package("1", elements)), &NO_KEYS)
}

#[test]
fn everything_that_a_key_has_is_read() {
    let document = container(&format!(
        r#"<KeyPackage><DeviceInfo><Manufacturer>ACME &amp; Co</Manufacturer><SerialNo> 0815 </SerialNo><Model>T-1</Model>
        <ExpiryDate>2031-01-01T00:00:00Z</ExpiryDate><UserId>DN</UserId></DeviceInfo>
        <CryptoModuleInfo><Id>1</Id></CryptoModuleInfo>
        <Key Id="1" Algorithm="urn:ietf:params:xml:ns:keyprov:pskc:totp"><Issuer>I</Issuer>
        <AlgorithmParameters><Suite>HMAC-SHA256</Suite><ResponseFormat Length="8" Encoding="DECIMAL"/></AlgorithmParameters>
        <UserId>CN=al&#105;ce</UserId>
        <Data><Secret><PlainValue>
            {} <!-- in two lines -->
            {}</PlainValue></Secret><Time><PlainValue>0</PlainValue></Time>
        <TimeInterval><PlainValue>60</PlainValue></TimeInterval><TimeDrift><PlainValue>-4</PlainValue></TimeDrift></Data>
        <Policy><StartDate>2020-01-01T00:00:00Z</StartDate><ExpiryDate>2030-01-01T00:00:00.5+01:00</ExpiryDate>
        <PINPolicy MinLength="4" PINUsageMode="Local"/><KeyUsage>OTP</KeyUsage></Policy></Key></KeyPackage>"#,
        &BASE64[..10],
        &BASE64[10..]
    ));
    let tokens = tokens(&document);
    assert_eq!(shown(&tokens[0]), row("0815 ACME & Co T-1 CN=alice", &format!("{BASE32} SHA256 8 60"), None));
    assert_eq!((tokens[0].drift, tokens[0].expires_at), (-4, Some(1_893_452_400)));
}

#[test]
fn defaults_are_sha1_six_digits_thirty_seconds() {
    let tokens = tokens(&container(&package("1", &plain_secret())));
    assert_eq!(shown(&tokens[0]), row("1 ACME - -", &format!("{BASE32} SHA1 6 30"), None));
    assert_eq!((tokens[0].drift, tokens[0].expires_at), (0, None));
}

#[test]
fn prefixes_cdata_comments_and_a_byte_order_mark_do_not_matter() {
    let document = format!(
        "\u{feff}<p:KeyContainer Version='1' xmlns:p='urn:ietf:params:xml:ns:keyprov:pskc'><?x?><p:KeyPackage>\
         <p:Key Algorithm='urn:ietf:params:xml:ns:keyprov:pskc:totp'><p:Data><p:Secret><p:PlainValue>{}<!-- x --><![CDATA[{}]]>\
         </p:PlainValue></p:Secret></p:Data></p:Key></p:KeyPackage></p:KeyContainer>\n<!-- end -->\n",
        &BASE64[..7],
        &BASE64[7..]
    );
    assert_eq!(shown(&tokens(&document)[0]), row("- - - -", &format!("{BASE32} SHA1 6 30"), None));
}

#[test]
fn keys_of_other_kinds_are_named_and_stop_no_other() {
    let kinds = [
        ("urn:ietf:params:xml:ns:keyprov:pskc:hotp", Some(Problem::Hotp)),
        ("urn:ietf:params:xml:ns:keyprov:pskc:ocra", Some(Problem::Ocra)),
        ("urn:ietf:params:xml:ns:keyprov:pskc:pin", Some(Problem::Pin)),
        ("http://www.yubico.com/#yubikey-aes", Some(Problem::YubicoOtp)),
        ("urn:ietf:params:xml:ns:keyprov:pskc#totp", None),
        ("urn:example:other", Some(Problem::OtherAlgorithm)),
        ("", Some(Problem::OtherAlgorithm)),
    ];
    let packages: String = (0..)
        .zip(kinds)
        .map(|(n, (kind, _))| {
            package(&n.to_string(), &plain_secret()).replace("urn:ietf:params:xml:ns:keyprov:pskc:totp", kind)
        })
        .collect();
    let tokens = tokens(&container(&packages));
    let problems: Vec<_> = tokens.iter().map(|token| token.problem).collect();
    assert_eq!(problems, kinds.map(|(_, problem)| problem));
    assert!(tokens.iter().all(|token| token.serial.is_some() && token.secret.is_some() == token.problem.is_none()));

    let nameless = "<KeyPackage><Key Id='1'/></KeyPackage><KeyPackage><DeviceInfo/></KeyPackage>";
    let problems: Vec<_> = read_with(Pskc, &container(nameless), &NO_KEYS).unwrap().iter().map(|t| t.problem).collect();
    assert_eq!(problems, [Some(Problem::NoAlgorithm), Some(Problem::NoSecret)]);
}

#[test]
fn a_policy_is_kept_or_named() {
    let policy = |policy: &str| of_key(&format!("{}<Policy>{policy}</Policy>", plain_secret()));
    assert_eq!(policy("<PINPolicy PINUsageMode='Local' MinLength='4'/><KeyUsage>OTP</KeyUsage>"), None);
    assert_eq!(policy("<KeyUsage>CR</KeyUsage><KeyUsage>OTP</KeyUsage>"), None);
    assert_eq!(policy("<KeyUsage>CR</KeyUsage>"), Some(Problem::KeyUsage));
    assert_eq!(policy("<NumberOfTransactions>4</NumberOfTransactions>"), Some(Problem::LimitedUses));
    assert_eq!(policy("<x:Other xmlns:x='y'/>"), Some(Problem::UnknownPolicy));
    for mode in ["Prepend", "Append", "Algorithmic"] {
        assert_eq!(policy(&format!("<PINPolicy PINUsageMode='{mode}'/>")), Some(Problem::PinWithCode));
    }
}

#[test]
fn what_makes_other_codes_is_named() {
    let format =
        |format: &str| of_key(&format!("<AlgorithmParameters>{format}</AlgorithmParameters>{}", plain_secret()));
    assert_eq!(format("<ResponseFormat Length='8' Encoding='DECIMAL' CheckDigits='false'/>"), None);
    assert_eq!(format("<ResponseFormat Length='6' Encoding='HEXADECIMAL'/>"), Some(Problem::Encoding));
    assert_eq!(format("<ResponseFormat Length='6' Encoding='DECIMAL' CheckDigits='true'/>"), Some(Problem::Encoding));
    for (length, problem) in [
        ("5", Problem::Parameter(ParameterError::Digits)),
        ("-4294967290", Problem::Parameter(ParameterError::Digits)),
        ("4294967302", Problem::Parameter(ParameterError::Digits)),
        ("x", Problem::Number),
    ] {
        assert_eq!(format(&format!("<ResponseFormat Length='{length}'/>")), Some(problem), "{length}");
    }
    assert_eq!(format("<Suite>HMAC-SHA512</Suite>"), None);
    assert_eq!(format("<Suite>OCRA-1:HOTP-SHA1-6:QN08</Suite>"), Some(Problem::Parameter(ParameterError::Algorithm)));
}

#[test]
fn numbers_are_digits_or_big_endian_bytes() {
    let drift = |text: &str| {
        let data = plain_secret()
            .replace("</Data>", &format!("<TimeDrift><PlainValue>{text}</PlainValue></TimeDrift></Data>"));
        let token = tokens(&container(&package("1", &data))).pop().unwrap();
        token.problem.map_or(Ok(token.drift), Err)
    };
    assert_eq!(drift("17"), Ok(17));
    assert_eq!(drift(" -60 "), Ok(-60));
    assert_eq!(drift("MTc="), Ok(17)); // the digits 17
    assert_eq!(drift("AAAAEQ=="), Ok(17)); // four bytes
    assert_eq!(drift("////+w=="), Ok(-5));
    assert_eq!(drift("EQ=="), Ok(17)); // one byte
    assert_eq!(drift("61"), Err(Problem::Drift));
    assert_eq!(drift("-9223372036854775808"), Err(Problem::Drift));
    assert_eq!(drift("////////////"), Err(Problem::Number)); // nine bytes
    assert_eq!(drift("?"), Err(Problem::Number));
    assert_eq!(drift(""), Err(Problem::Number));
    let period = plain_secret().replace("</Data>", "<TimeInterval><PlainValue>300</PlainValue></TimeInterval></Data>");
    assert_eq!(of_key(&period), Some(Problem::Parameter(ParameterError::Period)));
}

#[test]
fn secrets_are_base64_of_a_length_in_use() {
    let secret = |text: &str| tokens(&container(&package("1", &plain_secret().replace(BASE64, text)))).pop().unwrap();
    assert_eq!(secret("MTIzNA==").problem, Some(Problem::Secret(SecretError::TooShort)));
    assert_eq!(secret(&"AAAA".repeat(50)).problem, Some(Problem::Secret(SecretError::TooLong)));
    assert_eq!(secret("?").problem, Some(Problem::Secret(SecretError::Base64)));
    assert_eq!(secret("").problem, Some(Problem::Secret(SecretError::TooShort)));
    // A weak one can be imported by who decides to.
    let weak = secret("MTIzNDU2Nzg5MA==");
    assert_eq!((weak.problem, weak.secret.is_some()), (Some(Problem::Secret(SecretError::Weak)), true));
    assert_eq!(of_key("<Data><Counter/></Data>"), Some(Problem::NoSecret));
    assert_eq!(of_key("<Data><Secret/></Data>"), Some(Problem::Value));
}

#[test]
fn names_that_an_import_would_refuse_are_left_out_and_noted() {
    for name in ["a:b".to_owned(), "x".repeat(257), "a&#1;b".to_owned()] {
        let tokens = tokens(&container(&package(&name, &plain_secret())));
        assert_eq!(shown(&tokens[0]), row("- ACME - -", &format!("{BASE32} SHA1 6 30"), Problem::Name));
    }
    // The id of a user may have a colon: many are URIs.
    let user = format!("{}<UserId>urn:x:1</UserId>", plain_secret());
    assert_eq!(tokens(&container(&package("1", &user)))[0].user_id.as_deref(), Some("urn:x:1"));
}

#[test]
fn a_serial_number_that_two_tokens_have_is_noted_on_both() {
    let packages = ["1", "2", "1", "1"].map(|serial| package(serial, &plain_secret())).concat();
    let problems: Vec<_> = tokens(&container(&packages)).iter().map(|token| token.problem).collect();
    let twice = Some(Problem::SerialTwice);
    assert_eq!(problems, [twice, None, twice, twice]);
    // A token that is not imported is in nobody's way.
    let hotp = package("1", &plain_secret()).replace("pskc:totp", "pskc:hotp");
    assert_eq!(tokens(&container(&(package("1", &plain_secret()) + &hotp)))[0].problem, None);
}

#[test]
fn dates_are_those_of_the_calendar() {
    let date = |date: &str| {
        let policy = format!("{}<Policy><ExpiryDate>{date}</ExpiryDate></Policy>", plain_secret());
        let token = tokens(&container(&package("1", &policy))).pop().unwrap();
        assert!(token.secret.is_some());
        token.problem.map_or(Ok(token.expires_at), Err)
    };
    for (text, seconds) in [
        ("1970-01-01T00:00:00Z", 0),
        ("2012-09-19T00:00:00Z", 1_348_012_800),
        ("2000-02-29T23:59:59Z", 951_868_799),
        ("2026-11-29T16:00:00", 1_795_968_000),
        ("2026-11-29T16:00:00.123456+05:30", 1_795_948_200),
        ("0001-01-01T00:00:00Z", -62_135_596_800),
        ("9999-12-31T23:59:59Z", 253_402_300_799),
    ] {
        assert_eq!(date(text), Ok(Some(seconds)), "{text}");
    }
    for bad in [
        "",
        "2012-09-19",
        "2012-9-19T00:00:00Z",
        "2013-02-29T00:00:00Z",
        "2012-13-01T00:00:00Z",
        "2012-00-01T00:00:00Z",
        "2012-01-00T00:00:00Z",
        "2012-01-01T24:00:00Z",
        "2012-01-01T00:60:00Z",
        "0000-01-01T00:00:00Z",
        "2012-01-01T00:00:00+15:00",
        "2012-01-01T00:00:00.Z",
        "2012-01-01T00:00:00ZZ",
        "+012-01-01T00:00:00Z",
    ] {
        assert_eq!(date(bad), Err(Problem::Expiry), "{bad}");
    }
}

#[test]
fn drafts_are_read_where_they_are_alike() {
    // draft-hoyer-keyprov-pskc-algorithm-profiles-01 and the drafts before: other names, and data by attribute.
    let document = format!(
        "<SecretContainer version='1.0'><Device><DeviceId><Manufacturer>M</Manufacturer><SerialNo>7</SerialNo>\
         <Expiry>2030-01-01T00:00:00Z</Expiry></DeviceId>\
         <Secret SecretAlgorithm='TOTP' SecretId='7'><Usage OTP='true'><ResponseFormat length='8' format='DECIMAL'/></Usage>\
         <Data Name='SECRET'><Value>{BASE64}</Value></Data></Secret></Device></SecretContainer>"
    );
    let tokens = tokens(&document);
    assert_eq!(shown(&tokens[0]), row("7 M - -", &format!("{BASE32} SHA1 8 30"), None));
    assert_eq!(tokens[0].expires_at, Some(1_893_456_000));
    let digest = document.replace("</Value>", "</Value><ValueDigest>x</ValueDigest>");
    assert_eq!(problem(Pskc, &digest, &NO_KEYS), Some(Problem::DraftEncryption));
}

#[test]
fn other_documents_are_refused() {
    assert_eq!(error(""), ReadError::Xml);
    assert_eq!(error("this is not XML"), ReadError::Xml);
    assert_eq!(error("<a/>"), ReadError::NotPskc);
    assert_eq!(error("<KeyContainer Version='2.0'/>"), ReadError::Version);
    for cut in [
        "<KeyContainer",
        "<KeyContainer>",
        "<KeyContainer><KeyPackage>",
        "<KeyContainer><KeyPackage/>",
        "<KeyContainer></KeyPackage>",
        "<KeyContainer/><KeyContainer/>",
        "<KeyContainer/>x",
        "<KeyContainer>x</KeyContainer>",
        "<KeyContainer><KeyPackage></Key></KeyContainer>",
        "<KeyContainer><KeyPackage><a b=c/></KeyPackage></KeyContainer>",
        "<KeyContainer><KeyPackage>&#0;</KeyPackage></KeyContainer>",
        "<KeyContainer><KeyPackage>& </KeyPackage></KeyContainer>",
    ] {
        assert_eq!(error(cut), ReadError::Xml, "{cut}");
    }
    // Keys that come after what they open were not used for it.
    let late = container(&(package("1", &plain_secret()) + "<EncryptionKey/>"));
    assert_eq!(error(&late), ReadError::NotPskc);
    assert!(tokens("<KeyContainer/>").is_empty());
}

#[test]
fn no_entity_is_read() {
    let laughs: String = (1..10).map(|n| format!("<!ENTITY l{n} '{}'>", format!("&l{};", n - 1).repeat(10))).collect();
    let billion = format!("<!DOCTYPE x [<!ENTITY l0 'ha'>{laughs}]><KeyContainer>&l9;</KeyContainer>");
    assert_eq!(error(&billion), ReadError::Entity);
    assert_eq!(error("<!DOCTYPE x SYSTEM 'file:///etc/passwd'><KeyContainer/>"), ReadError::Entity);
    assert_eq!(error(&container(&package("&other;", &plain_secret()))), ReadError::Entity);
    assert_eq!(error(&container("<KeyPackage><Key Algorithm='&other;'/></KeyPackage>")), ReadError::Entity);
}

#[test]
fn nesting_and_size_are_bounded() {
    let nested = |depth: usize| container(&format!("{}{}", "<a>".repeat(depth), "</a>".repeat(depth)));
    assert!(read_with(Pskc, &nested(31), &NO_KEYS).is_ok());
    assert_eq!(error(&nested(32)), ReadError::Nesting);
    assert_eq!(error(&nested(1_000_000)), ReadError::Nesting);
    let attributes = |count: usize| {
        let attributes: String = (0..count).map(|n| format!(" a{n}='x'")).collect();
        container(&format!("<KeyPackage{attributes}/>"))
    };
    assert!(read_with(Pskc, &attributes(32), &NO_KEYS).is_ok());
    assert_eq!(error(&attributes(33)), ReadError::Nesting);
    assert_eq!(error(&attributes(500_000)), ReadError::Nesting);
    assert_eq!(error(&container(&format!("<KeyPackage>{}</KeyPackage>", "<a/>".repeat(100_000)))), ReadError::Nesting);
    assert_eq!(
        error(&container(&format!("<KeyPackage>{}</KeyPackage>", "x<!---->".repeat(100_000)))),
        ReadError::Nesting
    );
    // A long document of small packages is no such thing.
    let many = container(&"<KeyPackage/>".repeat(100_000));
    assert_eq!(tokens(&many).len(), 100_000);
    assert_eq!(error(&container(&"<KeyPackage/>".repeat(200_001))), ReadError::TooManyTokens);
    let long = |length: usize| "<KeyContainer/>".to_owned() + &" ".repeat(length - "<KeyContainer/>".len());
    assert!(read_with(Pskc, &long(MAX_DOCUMENT), &NO_KEYS).is_ok());
    assert_eq!(error(&long(MAX_DOCUMENT + 1)), ReadError::TooLarge);
}

#[test]
fn the_caller_can_stop_before_each_token() {
    let document = container(&package("1", &plain_secret()).repeat(3));
    let mut calls = 0;
    let read = tokens::read(Pskc, &document, &NO_KEYS, &mut || calls += 1).unwrap();
    assert!(read.len() == 3 && calls >= 3, "{calls}");
}

proptest! {
    #[test]
    fn no_text_panics_and_no_secret_is_without_parameters(text in "[ -~]{0,64}", place in 0usize..400, len in 0usize..40) {
        let document = container(&package("1", &plain_secret()));
        let start = place.min(document.len());
        let end = (start + len).min(document.len());
        let changed = [&document[..start], &text, &document[end..]].concat();
        for document in [&text, &changed] {
            for token in read_with(Pskc, document, &NO_KEYS).unwrap_or_default() {
                prop_assert!(token.secret.is_some() || token.problem.is_some());
                prop_assert!(token.secret.is_none() || token.parameters.is_some());
            }
        }
    }
}
