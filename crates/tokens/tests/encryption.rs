//! Encrypted PSKC: RFC 6030 section 6.

mod support;

use aes::cipher::{BlockModeEncrypt, KeyInit, KeyIvInit};
use aes::{Aes128, Aes192, Aes256};
use data_encoding::BASE64;
use hex_literal::hex;
use hmac::{Hmac, Mac};
use proptest::prelude::*;
use support::{BASE32, NO_KEYS, cipher_data, container, encrypted, package, problem, read_with, row, shown};
use tokens::{Format::Pskc, Keys, MAX_ITERATIONS, Problem, ReadError};

const SECRET: &[u8] = b"12345678901234567890";
const KEY: [u8; 16] = hex!("12345678901234567890123456789012");
const MAC_KEY: &[u8] = b"0123456789abcdefghij";

fn with_key(key: &[u8]) -> Keys<'_> {
    Keys { key: Some(key), password: None }
}

fn with_password(password: &str) -> Keys<'_> {
    Keys { key: None, password: Some(password) }
}

fn error(document: &str, keys: &Keys) -> ReadError {
    read_with(Pskc, document, keys).err().unwrap()
}

fn secret_of(document: &str, keys: &Keys) -> String {
    let tokens = read_with(Pskc, document, keys).unwrap();
    assert_eq!((tokens.len(), tokens[0].problem), (1, None));
    shown(&tokens[0]).1.split(' ').next().unwrap().to_owned()
}

/// AES-CBC with the length of the padding in its last byte. The others, which are arbitrary, are zeros.
fn cbc(key: &[u8], iv: &[u8; 16], plain: &[u8]) -> Vec<u8> {
    let mut padded = plain.to_vec();
    padded.resize(plain.len() / 16 * 16 + 16, 0);
    *padded.last_mut().unwrap() = (padded.len() - plain.len()) as u8;
    let length = padded.len();
    use aes::cipher::block_padding::NoPadding;
    match key.len() {
        16 => ::cbc::Encryptor::<Aes128>::new_from_slices(key, iv)
            .unwrap()
            .encrypt_padded::<NoPadding>(&mut padded, length),
        24 => ::cbc::Encryptor::<Aes192>::new_from_slices(key, iv)
            .unwrap()
            .encrypt_padded::<NoPadding>(&mut padded, length),
        _ => ::cbc::Encryptor::<Aes256>::new_from_slices(key, iv)
            .unwrap()
            .encrypt_padded::<NoPadding>(&mut padded, length),
    }
    .unwrap();
    [iv.as_slice(), &padded].concat()
}

fn hmac_sha1(key: &[u8], data: &[u8]) -> Vec<u8> {
    <Hmac<sha1::Sha1> as KeyInit>::new_from_slice(key).unwrap().chain_update(data).finalize().into_bytes().to_vec()
}

/// The MAC method, with the key of the MAC encrypted.
fn mac_method(algorithm: &str, key: &[u8], mac_key: &[u8]) -> String {
    let encrypted = BASE64.encode(&cbc(key, &[7; 16], mac_key));
    let cipher = format!("aes{}-cbc", key.len() * 8);
    format!(
        "<MACMethod Algorithm='http://www.w3.org/2000/09/xmldsig#{algorithm}'><MACKey>{}</MACKey></MACMethod>",
        cipher_data(&cipher, &encrypted)
    )
}

/// A token whose secret is encrypted, with its MAC.
fn sealed_package(serial: &str, key: &[u8], secret: &[u8]) -> String {
    let cipher = cbc(key, &[9; 16], secret);
    let mac = BASE64.encode(&hmac_sha1(MAC_KEY, &cipher));
    let data = encrypted("Secret", &format!("aes{}-cbc", key.len() * 8), &BASE64.encode(&cipher), Some(&mac));
    package(serial, &format!("<Data>{data}</Data>"))
}

fn sealed(key: &[u8]) -> String {
    container(&(mac_method("hmac-sha1", key, MAC_KEY) + &sealed_package("1", key, SECRET)))
}

/// RFC 6030 figure 6, with a TOTP key.
fn figure_6() -> String {
    let mac_key = "ESIzRFVmd4iZABEiM0RVZgKn6WjLaTC1sbeBMSvIhRejN9vJa2BOlSaMrR7I5wSX";
    let secret = encrypted(
        "Secret",
        "aes128-cbc",
        "AAECAwQFBgcICQoLDA0OD+cIHItlB3Wra1DUpxVvOx2lef1VmNPCMl8jwZqIUqGv",
        Some("Su+NvtQfmvfJzF6bmQiJqoLRExc="),
    );
    container(&format!(
        "<EncryptionKey><ds:KeyName>Pre-shared-key</ds:KeyName></EncryptionKey>
        <MACMethod Algorithm='http://www.w3.org/2000/09/xmldsig#hmac-sha1'><MACKey>{}</MACKey></MACMethod>{}",
        cipher_data("aes128-cbc", mac_key),
        package("987654321", &format!("<Data>{secret}</Data>"))
    ))
}

/// RFC 6030 figure 7, with a TOTP key.
fn figure_7() -> String {
    let mac_key = "2GTTnLwM3I4e5IO5FkufoOEiOhNj91fhKRQBtBJYluUDsPOLTfUvoU2dStyOwYZx";
    let secret = encrypted(
        "Secret",
        "aes128-cbc",
        "oTvo+S22nsmS2Z/RtcoF8Hfh+jzMe0RkiafpoDpnoZTjPYZu6V+A4aEn032yCr4f",
        Some("LP6xMvjtypbfT9PdkJhBZ+D6O4w="),
    );
    container(&format!(
        "<EncryptionKey><xenc11:DerivedKey>
        <xenc11:KeyDerivationMethod Algorithm='http://www.rsasecurity.com/rsalabs/pkcs/schemas/pkcs-5v2-0#pbkdf2'>
        <pkcs5:PBKDF2-params><Salt><Specified>Ej7/PEpyEpw=</Specified></Salt><IterationCount>1000</IterationCount>
        <KeyLength>16</KeyLength><PRF/></pkcs5:PBKDF2-params></xenc11:KeyDerivationMethod>
        <xenc11:MasterKeyName>My Password 1</xenc11:MasterKeyName></xenc11:DerivedKey></EncryptionKey>
        <MACMethod Algorithm='http://www.w3.org/2000/09/xmldsig#hmac-sha1'><MACKey>{}</MACKey></MACMethod>{}",
        cipher_data("aes128-cbc", mac_key),
        package("987654321", &format!("<Data>{secret}</Data>"))
    ))
}

fn key_wrapped(algorithm: &str, data: &[u8]) -> String {
    container(&package("1", &format!("<Data>{}</Data>", encrypted("Secret", algorithm, &BASE64.encode(data), None))))
}

#[test]
fn rfc_6030_figure_6_opens_with_its_key() {
    assert_eq!(secret_of(&figure_6(), &with_key(&KEY)), BASE32);
    assert_eq!(error(&figure_6(), &NO_KEYS), ReadError::KeyNeeded);
    assert_eq!(error(&figure_6(), &with_password("qwerty")), ReadError::KeyNeeded);
}

#[test]
fn rfc_6030_figure_7_opens_with_its_password_or_the_key_derived_from_it() {
    let document = figure_7();
    assert_eq!(secret_of(&document, &with_password("qwerty")), BASE32);
    assert_eq!(secret_of(&document, &with_key(&hex!("651e63cd57008476af1ff6422cd02e41"))), BASE32);
    assert_eq!(error(&document, &NO_KEYS), ReadError::PasswordNeeded);
    assert_eq!(error(&document, &with_password("qwertz")), ReadError::WrongKey);
    assert_eq!(error(&document, &with_password("")), ReadError::WrongKey);
}

#[test]
fn every_length_of_key_opens() {
    for key in [&[3; 16][..], &[4; 24], &[5; 32]] {
        assert_eq!(secret_of(&sealed(key), &with_key(key)), BASE32);
        let other: Vec<u8> = key.iter().map(|byte| byte ^ 1).collect();
        assert_eq!(error(&sealed(key), &with_key(&other)), ReadError::WrongKey);
    }
    for length in [0, 15, 17, 24, 32, 64] {
        assert_eq!(error(&sealed(&[3; 16]), &with_key(&vec![3; length])), ReadError::KeyLength, "{length}");
    }
}

#[test]
fn every_hash_of_the_mac_opens() {
    use sha2::{Sha224, Sha256, Sha384, Sha512};
    fn mac<M: Mac + KeyInit>(data: &[u8]) -> Vec<u8> {
        <M as KeyInit>::new_from_slice(MAC_KEY).unwrap().chain_update(data).finalize().into_bytes().to_vec()
    }
    let cipher = cbc(&KEY, &[9; 16], SECRET);
    for (name, mac) in [
        ("hmac-sha224", mac::<Hmac<Sha224>>(&cipher)),
        ("hmac-sha256", mac::<Hmac<Sha256>>(&cipher)),
        ("HMAC-SHA384", mac::<Hmac<Sha384>>(&cipher)),
        ("hmac-sha-512", mac::<Hmac<Sha512>>(&cipher)),
    ] {
        let data = encrypted("Secret", "aes128-cbc", &BASE64.encode(&cipher), Some(&BASE64.encode(&mac)));
        let token = package("1", &format!("<Data>{data}</Data>"));
        assert_eq!(secret_of(&container(&(mac_method(name, &KEY, MAC_KEY) + &token)), &with_key(&KEY)), BASE32);
    }
    for name in ["hmac-md5", "hmac-ripemd160", "sha1", ""] {
        let document = container(&(mac_method(name, &KEY, MAC_KEY) + &sealed_package("1", &KEY, SECRET)));
        assert_eq!(problem(Pskc, &document, &with_key(&KEY)), Some(Problem::MacMethod), "{name}");
    }
}

#[test]
fn a_mac_without_a_key_uses_the_key_of_the_document() {
    let cipher = cbc(&KEY, &[9; 16], SECRET);
    let mac = BASE64.encode(&hmac_sha1(&KEY, &cipher));
    let data = encrypted("Secret", "aes128-cbc", &BASE64.encode(&cipher), Some(&mac));
    let token = package("1", &format!("<Data>{data}</Data>"));
    let method = |content: &str| format!("<MACMethod Algorithm='x#hmac-sha1'>{content}</MACMethod>");
    assert_eq!(secret_of(&container(&(method("") + &token)), &with_key(&KEY)), BASE32);
    let elsewhere = container(&(method("<MACKeyReference>k</MACKeyReference>") + &token));
    assert_eq!(problem(Pskc, &elsewhere, &with_key(&KEY)), Some(Problem::MacMethod));
}

#[test]
fn key_wrap_opens_the_vectors_of_rfc_3394_and_rfc_5649() {
    let kek = hex!("000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f");
    let expected = data_encoding::BASE32_NOPAD.encode(&hex!("00112233445566778899aabbccddeeff"));
    for (bits, wrapped) in [
        (128, hex!("1fa68b0a8112b447aef34bd8fb5a7b829d3e862371d2cfe5")),
        (192, hex!("96778b25ae6ca435f92b5b97c050aed2468ab8a17ad84e5d")),
        (256, hex!("64e8c3f9ce0f5ba263e9777905818a2a93c8191e7d6e8ae7")),
    ] {
        let document = key_wrapped(&format!("kw-aes{bits}"), &wrapped);
        assert_eq!(secret_of(&document, &with_key(&kek[..bits / 8])), expected);
        let mut changed = wrapped;
        changed[5] ^= 1;
        assert_eq!(
            error(&key_wrapped(&format!("kw-aes{bits}"), &changed), &with_key(&kek[..bits / 8])),
            ReadError::WrongKey
        );
    }
    let kek = hex!("5840df6e29b02af1ab493b705bf16ea1ae8338f4dcc176a8");
    let wrapped = hex!("138bdeaa9b8fa7fc61f97742e72248ee5ae6ae5360d1ae6a5f54f373fa543b6a");
    let expected = data_encoding::BASE32_NOPAD.encode(&hex!("c37b7e6492584340bed12207808941155068f738"));
    for name in ["kw-aes192", "kw-aes-192-pad"] {
        assert_eq!(secret_of(&key_wrapped(name, &wrapped), &with_key(&kek)), expected);
    }
}

#[test]
fn what_nothing_protects_is_not_decrypted() {
    let token = sealed_package("1", &KEY, SECRET);
    let without_method = container(&token);
    assert_eq!(problem(Pskc, &without_method, &with_key(&KEY)), Some(Problem::NoMacMethod));
    let start = token.find("<ValueMAC>").unwrap();
    let end = token.find("</ValueMAC>").unwrap() + "</ValueMAC>".len();
    let without_mac = container(&(mac_method("hmac-sha1", &KEY, MAC_KEY) + &token[..start] + &token[end..]));
    assert_eq!(problem(Pskc, &without_mac, &with_key(&KEY)), Some(Problem::NoMac));
    // A short key of the MAC could be guessed: a document may be made so that it decrypts to none.
    for length in [0, 15] {
        let cipher = cbc(&KEY, &[9; 16], SECRET);
        let mac = BASE64.encode(&hmac_sha1(&MAC_KEY[..length], &cipher));
        let data = encrypted("Secret", "aes128-cbc", &BASE64.encode(&cipher), Some(&mac));
        let method = mac_method("hmac-sha1", &KEY, &MAC_KEY[..length]);
        let document = container(&(method + &package("1", &format!("<Data>{data}</Data>"))));
        assert_eq!(error(&document, &with_key(&KEY)), ReadError::WrongKey);
    }
}

#[test]
fn a_changed_value_is_a_problem_of_its_token_alone() {
    let good = sealed_package("1", &KEY, SECRET);
    let changed = sealed_package("2", &KEY, SECRET);
    let start = changed.find("<ValueMAC>").unwrap() + "<ValueMAC>".len();
    let changed = [&changed[..start], "AAAA", &changed[start + 4..]].concat();
    let document = container(&(mac_method("hmac-sha1", &KEY, MAC_KEY) + &changed + &good));
    let tokens = read_with(Pskc, &document, &with_key(&KEY)).unwrap();
    assert_eq!(shown(&tokens[0]), row("2 ACME - -", "-", Problem::Mac));
    assert_eq!(shown(&tokens[1]), row("1 ACME - -", &format!("{BASE32} SHA1 6 30"), None));
    // A MAC over what is encrypted says nothing else about it.
    let short = sealed_package("3", &KEY, b"1234");
    let document = container(&(mac_method("hmac-sha1", &KEY, MAC_KEY) + &short + &good));
    assert_eq!(shown(&read_with(Pskc, &document, &with_key(&KEY)).unwrap()[1]).2, None);
    // Cut off, a MAC is another one.
    let cut = good.replacen("=</ValueMAC>", "</ValueMAC>", 1);
    let start = cut.find("<ValueMAC>").unwrap() + "<ValueMAC>".len();
    let cut = [&cut[..start], "</ValueMAC>", &cut[cut.find("</Secret>").unwrap()..]].concat();
    let document = container(&(mac_method("hmac-sha1", &KEY, MAC_KEY) + &cut + &good));
    assert_eq!(read_with(Pskc, &document, &with_key(&KEY)).unwrap()[0].problem, Some(Problem::Mac));
}

#[test]
fn encrypted_numbers_are_read_under_their_mac() {
    let value = |name: &str, bytes: &[u8]| {
        let cipher = cbc(&KEY, &[9; 16], bytes);
        let mac = BASE64.encode(&hmac_sha1(MAC_KEY, &cipher));
        encrypted(name, "aes128-cbc", &BASE64.encode(&cipher), Some(&mac))
    };
    let data = value("Secret", SECRET) + &value("TimeInterval", &[0, 0, 0, 60]) + &value("TimeDrift", b"-3");
    let document =
        container(&(mac_method("hmac-sha1", &KEY, MAC_KEY) + &package("1", &format!("<Data>{data}</Data>"))));
    let tokens = read_with(Pskc, &document, &with_key(&KEY)).unwrap();
    assert_eq!(shown(&tokens[0]).1, format!("{BASE32} SHA1 6 60"));
    assert_eq!(tokens[0].drift, -3);
}

#[test]
fn other_ciphers_are_named() {
    for (name, expected) in [
        ("tripledes-cbc", Problem::TripleDes),
        ("kw-tripledes", Problem::TripleDes),
        ("camellia256-cbc", Problem::Camellia),
        ("kw-camellia128", Problem::Camellia),
        ("rsa-1_5", Problem::Certificate),
        ("pbes2", Problem::DraftEncryption),
        ("aes128-gcm", Problem::Cipher),
        ("", Problem::Cipher),
    ] {
        let document = key_wrapped(name, &[0; 24]);
        assert_eq!(problem(Pskc, &document, &with_key(&KEY)), Some(expected), "{name}");
        // The key of the MAC may be what is not supported.
        let method = mac_method("hmac-sha1", &KEY, MAC_KEY).replace("aes128-cbc", name);
        let document = container(&(method + &sealed_package("1", &KEY, SECRET)));
        assert_eq!(problem(Pskc, &document, &with_key(&KEY)), Some(expected), "{name}");
    }
    let certificate =
        "<EncryptionKey><ds:X509Data><ds:X509Certificate>AA==</ds:X509Certificate></ds:X509Data></EncryptionKey>";
    let document = container(&(certificate.to_owned() + &sealed_package("1", &KEY, SECRET)));
    assert_eq!(problem(Pskc, &document, &with_key(&KEY)), Some(Problem::Certificate));
}

#[test]
fn the_derivation_is_bounded_and_complete() {
    let with = |from: &str, to: &str| error(&figure_7().replacen(from, to, 1), &with_password("qwerty"));
    let beyond = (MAX_ITERATIONS + 1).to_string();
    assert_eq!(with(">1000<", &format!(">{beyond}<")), ReadError::Iterations);
    assert_eq!(with(">1000<", ">18446744073709551615<"), ReadError::Iterations);
    for (from, to) in [
        (">1000<", ">0<"),
        (">1000<", "><"),
        (">1000<", ">-1<"),
        ("<IterationCount>1000</IterationCount>", ""),
        (">16<", ">17<"),
        (">16<", ">4294967312<"),
        ("<KeyLength>16</KeyLength>", ""),
        ("<Specified>Ej7/PEpyEpw=</Specified>", ""),
        ("#pbkdf2", "#scrypt"),
        ("<PRF/>", "<PRF Algorithm='x#hmac-md5'/>"),
        ("<PRF/>", "<PRF>x#hmac-md5</PRF>"),
    ] {
        assert_eq!(with(from, to), ReadError::Derivation, "{from} {to}");
    }
    assert_eq!(with("<PRF/>", "<PRF Algorithm='x#hmac-sha512'/>"), ReadError::WrongKey);
    for same in ["", "<PRF></PRF>", "<PRF Algorithm='x#hmac-sha1'/>", "<PRF> x#hmac-sha1 </PRF>"] {
        assert_eq!(secret_of(&figure_7().replacen("<PRF/>", same, 1), &with_password("qwerty")), BASE32, "{same}");
    }
    assert_eq!(with(">16<", ">32<"), ReadError::KeyLength);
}

#[test]
fn nothing_is_derived_for_tokens_that_are_not_read() {
    let document = figure_7().replace("pskc:totp", "pskc:hotp").replacen(">1000<", ">2000000000<", 1);
    assert_eq!(problem(Pskc, &document, &NO_KEYS), Some(Problem::Hotp));
}

proptest! {
    #[test]
    fn what_is_sealed_opens_and_a_flipped_bit_does_not(
        secret in proptest::collection::vec(any::<u8>(), 16..128), key in any::<[u8; 32]>(), length in 0usize..3, bit in any::<prop::sample::Index>(),
    ) {
        let key = &key[..[16, 24, 32][length]];
        let cipher = cbc(key, &[9; 16], &secret);
        let mac = BASE64.encode(&hmac_sha1(MAC_KEY, &cipher));
        let document = |cipher: &[u8]| {
            let data = encrypted("Secret", &format!("aes{}-cbc", key.len() * 8), &BASE64.encode(cipher), Some(&mac));
            container(&(mac_method("hmac-sha1", key, MAC_KEY) + &package("1", &format!("<Data>{data}</Data>"))))
        };
        let tokens = read_with(Pskc, &document(&cipher), &with_key(key)).unwrap();
        prop_assert_eq!(tokens[0].secret.as_ref().map(|secret| secret.as_bytes()), Some(secret.as_slice()));
        let mut changed = cipher.clone();
        let bit = bit.index(8 * changed.len());
        changed[bit / 8] ^= 1 << (bit % 8);
        prop_assert_eq!(read_with(Pskc, &document(&changed), &with_key(key)).err(), Some(ReadError::WrongKey));
    }
}

#[test]
fn padding_is_that_of_xml_encryption() {
    // Only the last byte counts (XML Encryption section 5.2): PKCS #7 is one way to fill the others.
    let mut buffer = [0; 32];
    buffer[..20].copy_from_slice(SECRET);
    let cipher = ::cbc::Encryptor::<Aes128>::new_from_slices(&KEY, &[9; 16]).unwrap();
    let encrypted_secret = cipher.encrypt_padded::<aes::cipher::block_padding::Pkcs7>(&mut buffer, 20).unwrap();
    let data = [&[9; 16], encrypted_secret].concat();
    let mac = BASE64.encode(&hmac_sha1(MAC_KEY, &data));
    let secret = encrypted("Secret", "aes128-cbc", &BASE64.encode(&data), Some(&mac));
    let document =
        container(&(mac_method("hmac-sha1", &KEY, MAC_KEY) + &package("1", &format!("<Data>{secret}</Data>"))));
    assert_eq!(secret_of(&document, &with_key(&KEY)), BASE32);
}
