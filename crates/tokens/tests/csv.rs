//! CSV in the column orders of OATH, Entra, and Yubico.

mod support;

use otp::{ParameterError, SecretError};
use proptest::prelude::*;
use support::{BASE32, HEX, NO_KEYS, read_with, row, shown};
use tokens::{Format::Csv, Problem, ReadError};

fn rows(document: &str) -> Vec<(String, String, Option<Problem>)> {
    read_with(Csv, document, &NO_KEYS).unwrap().iter().map(shown).collect()
}

fn error(document: &str) -> ReadError {
    read_with(Csv, document, &NO_KEYS).err().unwrap()
}

fn codes(parameters: &str) -> String {
    format!("{BASE32} {parameters}")
}

#[test]
fn entra_has_a_header_and_base32() {
    let document = format!(
        "upn,serial number,secret key,time interval,manufacturer,model\n\
         alice@example.com,1,{BASE32},30,Contoso,HardwareKey\n,2,{},60,Contoso,HardwareKey\n",
        BASE32.to_lowercase()
    );
    assert_eq!(
        rows(&document),
        [
            row("1 Contoso HardwareKey alice@example.com", &codes("SHA1 6 30"), None),
            row("2 Contoso HardwareKey -", &codes("SHA1 6 60"), None)
        ]
    );
    // Told by the count too, and vendors leave the upn out.
    let (header, rest) = document.split_once('\n').unwrap();
    assert_eq!(rows(rest), rows(&document));
    let without = format!("Serial Number,Secret Key,Time Interval,Manufacturer,Model\n1,{BASE32},30,M,X");
    assert_eq!(rows(&without), [row("1 M X -", &codes("SHA1 6 30"), None)]);
    assert_eq!(rows(header), []);
}

#[test]
fn oath_is_told_by_its_count_and_has_hexadecimal() {
    let document = format!("1,{HEX},totp,6,30\n2, {HEX} , TOTP,8,60\n3,{HEX},totp,7\n4,{HEX},totp\n");
    let expected = [("1", "SHA1 6 30"), ("2", "SHA1 8 60"), ("3", "SHA1 7 30"), ("4", "SHA1 6 30")];
    let expected = expected.map(|(serial, parameters)| row(&format!("{serial} - - -"), &codes(parameters), None));
    assert_eq!(rows(&document), expected);
}

#[test]
fn rows_of_other_kinds_are_named_and_stop_no_other() {
    let document = format!(
        "1,{HEX},hotp,6\n2,{HEX},ocra,OCRA-1:HOTP-SHA1-6:QN08\n3,{HEX}\n4,{HEX},pin\n5,{HEX},other\n\
         6,{HEX},totp,9,30\n7,{HEX},totp,6,x\n8,{HEX},totp,6,10\n9,xyz,totp\n10,,totp\n11\n12,{HEX},totp,6,30,more\n\
         13,{HEX},totp,6,30,,,\n14,31323334353637383930,totp\na:b,{HEX},totp\n16,{HEX},totp"
    );
    let problems: Vec<_> = rows(&document).into_iter().map(|row| row.2).collect();
    assert_eq!(
        problems,
        [
            Some(Problem::Hotp),
            Some(Problem::Ocra),
            Some(Problem::NoAlgorithm),
            Some(Problem::Pin),
            Some(Problem::OtherAlgorithm),
            Some(Problem::Parameter(ParameterError::Digits)),
            Some(Problem::Number),
            Some(Problem::Parameter(ParameterError::Period)),
            Some(Problem::Secret(SecretError::Hex)),
            Some(Problem::NoSecret),
            Some(Problem::Columns),
            Some(Problem::Columns),
            None,
            Some(Problem::Secret(SecretError::Weak)),
            Some(Problem::Name),
            None,
        ]
    );
    let with_secret =
        read_with(Csv, &document, &NO_KEYS).unwrap().iter().filter(|token| token.secret.is_some()).count();
    assert_eq!(with_secret, 4); // the good ones, the weak one, and the one with a name that is left out
}

#[test]
fn what_spreadsheets_make_of_it_does_not_matter() {
    let expected = [row("1 Me, Co \"X\" A;B -", &codes("SHA256 8 60"), None)];
    let header = "Serial No,Seed,Hash Function,Digits,Time Step,Manufacturer,Model,Comment";
    for (separator, end) in [(",", "\r\n"), (";", "\n"), ("\t", "\r")] {
        let fields = ["1", HEX, "HmacSHA256", "8", "60", "\"Me, Co \"\"X\"\"\"", "\"A;B\"", "line\u{e9}"];
        let line = |fields: &[&str]| fields.join(separator) + end;
        let header: Vec<_> = header.split(',').collect();
        let document = format!("\u{feff}{}{end}{}# comment{end}{}", line(&header), line(&fields), separator.repeat(7));
        assert_eq!(rows(&document), expected, "{document:?}");
    }
}

#[test]
fn a_header_says_the_encoding_and_the_kind() {
    let one = |header: &str, line: &str| rows(&format!("{header}\n{line}")).remove(0);
    let good = |parameters: &str| row("1 - - -", &codes(parameters), None);
    assert_eq!(one("serial,secret,type", &format!("1,{BASE32},totp")), good("SHA1 6 30"));
    assert_eq!(one("type;key;serial", &format!("totp;{HEX};1")), good("SHA1 6 30"));
    assert_eq!(one("serial,secret,period,algorithm", &format!("1,{BASE32},60,sha512")), good("SHA512 6 60"));
    // Base32 by chance is not taken for it, nor the other way round.
    assert_eq!(one("serial,secret,period", &format!("1,{HEX},60")).2, Some(Problem::Secret(SecretError::Symbol)));
    assert_eq!(one("serial,seed,period", &format!("1,{BASE32},60")).2, Some(Problem::Secret(SecretError::Hex)));
    assert_eq!(one("serial,secret", &format!("1,{BASE32}")).2, Some(Problem::NoAlgorithm));
    assert_eq!(one("serial,secret,type,period", &format!("1,{BASE32},,30")).2, Some(Problem::NoAlgorithm));
    assert_eq!(
        one("serial,secret,period,algorithm", &format!("1,{BASE32},30,md5")).2,
        Some(Problem::Parameter(ParameterError::Algorithm))
    );
    let expires = format!("serial,secret,period,expires\n1,{BASE32},30,2030-01-01T00:00:00Z\n2,{BASE32},30,tomorrow");
    let tokens = read_with(Csv, &expires, &NO_KEYS).unwrap();
    assert_eq!((tokens[0].expires_at, tokens[1].problem), (Some(1_893_456_000), Some(Problem::Expiry)));
}

#[test]
fn the_log_of_yubico_has_one_kind_that_makes_totp() {
    let rest = ",,,0,0,0,0,0,0,0,0,0,0";
    let document = format!(
        "LOGGING START,1/2/2030 12:00\nChallenge-Response: HMAC-SHA1,1/2/2030 12:00,2,,,{HEX}{rest}\n\
         OATH-HOTP,1/2/2030 12:00,1,cccccccccccc,,{HEX}{rest}\n\
         Yubico OTP,1/2/2030 12:00,1,vvgutbiedkvi,ab86c04de6a3,d26a7c0f85fdda28bd816e406342b214{rest}\n\
         Static Password: Scan Code,1/2/2030 12:00,1,,d5a3d50327dc,0e8e37b0e38b314a56748c030f58d21d{rest}\n\
         Challenge-Response: Yubico OTP,1/2/2030 12:00,1,,ab86c04de6a3,d26a7c0f85fdda28bd816e406342b214{rest}\n\
         Configuration Swap,1/2/2030 12:00,1,,,{rest}\n"
    );
    let yubico = |codes: &str, problem| row("- Yubico - -", codes, problem);
    let problems = [Problem::Hotp, Problem::YubicoOtp, Problem::StaticPassword, Problem::YubicoOtp, Problem::NoToken];
    let mut expected = vec![yubico(&codes("SHA1 6 30"), None)];
    expected.extend(problems.map(|problem| yubico("-", Some(problem))));
    assert_eq!(rows(&document), expected);
}

#[test]
fn the_short_log_of_yubico_leaves_hotp_open() {
    let end = ",000000000000,2030-01-02T12:00:00,";
    let document = format!(
        "508326,,0,{HEX}{end}\n508327,cccccccccccc,83cebdfb7b93,a47c5bf9c152202f577be6721c0113af{end}\n\
         508328,,,9e2fd386224a7f77e9b5aee775464033{end}\n508329,ubom12345678,0,{HEX}{end}\n508330,,4096,{HEX}{end}\n508331,,0\n"
    );
    assert_eq!(
        rows(&document),
        [
            row("508326 Yubico - -", &codes("SHA1 6 30"), Problem::HotpOrChallenge),
            row("508327 Yubico - -", "-", Problem::YubicoOtp),
            row("508328 Yubico - -", "-", Problem::StaticPassword),
            row("508329 Yubico - -", "-", Problem::Hotp),
            row("508330 Yubico - -", "-", Problem::Hotp),
            row("- - - -", "-", Problem::Columns),
        ]
    );
}

#[test]
fn other_columns_are_refused() {
    for document in ["", "\n\n", "# only a comment", "one", "a,b,c,d,e,f,g,h", "serial,secret,secret", ",,,\n"] {
        let expected = if document == "serial,secret,secret" { Ok(1) } else { Err(ReadError::Columns) };
        assert_eq!(read_with(Csv, document, &NO_KEYS).map(|tokens| tokens.len()), expected, "{document}");
    }
    assert_eq!(error(&format!("{}\n", "x,".repeat(100))), ReadError::Columns);
}

#[test]
fn a_long_row_is_a_problem_of_its_own() {
    let long = format!("1,{HEX},totp\n2,{},totp\n{}\n3,{HEX},totp\n", "3".repeat(100_000), "x,".repeat(100));
    let problems: Vec<_> = rows(&long).into_iter().map(|row| row.2).collect();
    assert_eq!(problems, [None, Some(Problem::Columns), Some(Problem::Columns), None]);
    let many = format!("1,{HEX},totp\n{}", "x\n".repeat(200_000));
    assert_eq!(error(&many), ReadError::TooManyTokens);
}

proptest! {
    #[test]
    fn fields_come_back_as_they_were_written(serial in "[a-z][a-z ,;\"]{0,20}[a-z]", separator in "[,;\t]", secret in proptest::collection::vec(any::<u8>(), 16..128)) {
        let quoted = format!("\"{}\"", serial.replace('"', "\"\""));
        let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
        let document = ["serial", "seed", "period"].join(&separator) + "\n" + &[&quoted, &hex, "60"].join(&separator);
        let tokens = read_with(Csv, &document, &NO_KEYS).unwrap();
        prop_assert_eq!(tokens[0].serial.as_deref(), Some(serial.as_str()));
        prop_assert_eq!(tokens[0].secret.as_ref().map(|secret| secret.as_bytes()), Some(secret.as_slice()));
    }

    #[test]
    fn no_text_panics(text in "[a-z0-9,;\"#\r\n\t]{0,200}") {
        for document in [text.clone(), format!("1,{HEX},totp\n{text}"), format!("serial,seed,period\n{text}")] {
            for token in read_with(Csv, &document, &NO_KEYS).unwrap_or_default() {
                prop_assert!(token.secret.is_none() || token.parameters.is_some());
                prop_assert!(token.secret.is_some() || token.problem.is_some());
            }
        }
    }
}
