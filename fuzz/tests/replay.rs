//! Replays every corpus, each input with its neighbors, on the stable toolchain. New inputs come from tools/fuzz.sh.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use pg_totp_fuzz::{TARGETS, Target};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn names_in(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect()
}

/// The corpus of a target: some inputs that are accepted, some that are not, each short.
fn replay(name: &str) {
    let (_, target) = TARGETS.iter().find(|(known, _)| *known == name).unwrap();
    let mut answers = BTreeSet::new();
    for entry in fs::read_dir(folder("corpus").join(name)).unwrap() {
        let path = entry.unwrap().path();
        let input = fs::read(&path).unwrap();
        println!("{} ({} bytes)", path.display(), input.len()); // shown if it fails
        answers.insert(target(&input));
        if input.len() <= 1024 && name != "qr" {
            neighbors(*target, &input); // they would take minutes of long inputs, and of drawings
        }
    }
    assert_eq!(answers, BTreeSet::from([false, true]), "the corpus has inputs of one kind only");
}

/// Cut off anywhere, with one byte changed, doubled or left out anywhere: what typing and copying do to an input.
fn neighbors(target: Target, input: &[u8]) {
    let step = input.len().pow(2) / 16384 + 1; // of inputs longer than 128 bytes only some places
    for place in (0..input.len()).step_by(step) {
        target(&input[..place]);
        target(&[&input[..place], &input[place + 1..]].concat());
        target(&[&input[..=place], &input[place..]].concat());
        for byte in [0, b' ', b'%', b'=', 0x80, 0xff, input[place] ^ 0x20, input[place].wrapping_add(1)] {
            let mut changed = input.to_vec();
            changed[place] = byte;
            target(&changed);
        }
    }
}

macro_rules! replayed {
    ($($target:ident)*) => {
        $(#[test] fn $target() { replay(stringify!($target)); })*

        #[test]
        fn every_target_has_a_corpus_a_program_and_its_replay() {
            let targets: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
            assert_eq!(BTreeSet::from([$(stringify!($target).to_owned()),*]), targets);
            assert_eq!(names_in(&folder("corpus")), targets);
            assert_eq!(names_in(&folder("fuzz_targets")), targets);
        }
    };
}

replayed!(base32 code window uri names encoding recovery_code recovery_set qr sealed data_key key_file fingerprint pskc csv google);
