//! Where master keys come from: the file that `totp.key_file` names, else the environment of the server.

use std::ffi::{CStr, OsStr};
use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use pgrx::pg_sys;
use seal::MasterKeys;
use zeroize::Zeroizing;

use crate::error::Error;
use crate::settings;

const ENVIRONMENT: &str = "TOTP_ENCRYPTION_KEY";
const MAX_BYTES: u64 = 64 * 1024;

/// Reads the master keys.
///
/// Errors: F0000 where there are none, or where the file or a line of it breaks a rule.
pub fn read() -> Result<MasterKeys, Error> {
    match settings::key_file() {
        Some(path) => {
            let text = read_file(Path::new(OsStr::from_bytes(path.to_bytes())))?;
            MasterKeys::from_file_text(&text).map_err(|e| invalid(e.line, e.rule.as_str()))
        }
        None => {
            let text = Zeroizing::new(std::env::var(ENVIRONMENT).map_err(|_| Error::NoMasterKey)?);
            MasterKeys::from_env_text(&text).map_err(|e| Error::KeyEnvironment { rule: e.rule.as_str() })
        }
    }
}

/// Whether the keys come from the environment, which the operating system shows to more eyes than a file.
pub fn is_environment() -> bool {
    settings::key_file().is_none()
}

fn read_file(path: &Path) -> Result<Zeroizing<String>, Error> {
    if !path.metadata().map_err(|_| invalid(0, "the file cannot be read"))?.is_file() {
        return Err(invalid(0, "it is not a regular file"));
    }
    // O_NONBLOCK: should a FIFO have taken its place meanwhile, the open does not wait for a writer.
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(|_| invalid(0, "the file cannot be read"))?;
    let opened = file.metadata().map_err(|_| invalid(0, "the file cannot be read"))?;
    check_permissions(&opened)?;
    if lies_in_data_directory(path) {
        return Err(invalid(0, "it lies inside the data directory, and so in every backup beside what it protects"));
    }
    let mut text = Zeroizing::new(String::with_capacity(MAX_BYTES as usize + 1));
    file.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(|_| invalid(0, "it is not plain text"))?;
    if text.len() as u64 > MAX_BYTES {
        return Err(invalid(0, "it is longer than 64 kB"));
    }
    Ok(text)
}

/// PostgreSQL's own rule for `ssl_key_file`, asked of the opened file: ours and for nobody else, or root's and at
/// most readable by our group.
fn check_permissions(file: &Metadata) -> Result<(), Error> {
    // SAFETY: geteuid cannot fail.
    let us = unsafe { libc::geteuid() };
    if !file.is_file() {
        Err(invalid(0, "it is not a regular file"))
    } else if file.uid() != us && file.uid() != 0 {
        Err(invalid(0, "it must be owned by the operating system user of the server, or by root"))
    } else if file.uid() == us && file.mode() & 0o077 != 0 {
        Err(invalid(0, "group or others have access: it must have mode 0600 or less"))
    } else if file.mode() & 0o037 != 0 {
        Err(invalid(0, "others have access: a file of root must have mode 0640 or less"))
    } else {
        Ok(())
    }
}

fn lies_in_data_directory(path: &Path) -> bool {
    // SAFETY: DataDir is set once at the start of the server.
    let directory = unsafe { CStr::from_ptr(pg_sys::DataDir) };
    let directory = Path::new(OsStr::from_bytes(directory.to_bytes()));
    match (path.canonicalize(), directory.canonicalize()) {
        (Ok(path), Ok(directory)) => path.starts_with(directory),
        _ => true,
    }
}

fn invalid(line: usize, rule: &'static str) -> Error {
    Error::KeyFile { line, rule }
}
