//! The source of master keys: the file that `totp.key_file` names, or else the environment of the server.
//!
//! Owns the rules for the file. Must never read one that others can write or read.

use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io::{ErrorKind, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use seal::MasterKeys;
use zeroize::Zeroizing;

use crate::backend;
use crate::error::Error;
use crate::settings;

const ENVIRONMENT: &str = "TOTP_ENCRYPTION_KEY";
const MAX_BYTES: u64 = 64 * 1024;

/// Reads the master keys.
///
/// Errors: F0000 if there are none, or if the file or a line of it breaks a rule.
pub fn read() -> Result<MasterKeys, Error> {
    match settings::key_file() {
        Some(path) => {
            let path = Path::new(OsStr::from_bytes(path.to_bytes()));
            let text = match read_file(path) {
                // Kubernetes puts a new link in place of an old one, and then removes what that led to. Who was on its way there
                // finds nothing, and the next time what is new.
                Err(FileRule::Exists) => read_file(path),
                read => read,
            }?;
            MasterKeys::from_file_text(&text).map_err(|e| Error::KeyFile { line: e.line, rule: e.rule.as_str() })
        }
        None => {
            let text = Zeroizing::new(std::env::var(ENVIRONMENT).map_err(|_| Error::NoMasterKey)?);
            MasterKeys::from_env_text(&text).map_err(|e| Error::KeyEnvironment { rule: e.rule.as_str() })
        }
    }
}

/// Returns whether the keys come from the environment, which more people and programs can read than a file.
pub fn is_environment() -> bool {
    settings::key_file().is_none()
}

fn read_file(path: &Path) -> Result<Zeroizing<String>, FileRule> {
    if !path.metadata().map_err(FileRule::of)?.is_file() {
        return Err(FileRule::Regular);
    }
    // O_NONBLOCK: if a FIFO took the place of the file meanwhile, the open does not wait for a writer.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(FileRule::of)?;
    check_permissions(&file.metadata().map_err(FileRule::of)?)?;
    // This resolves the path again, which may lead elsewhere by now, or nowhere.
    if is_in_data_directory(path).map_err(FileRule::of)? {
        return Err(FileRule::Outside);
    }
    let mut text = Zeroizing::new(String::with_capacity(MAX_BYTES as usize + 1));
    file.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(|_| FileRule::Text)?;
    if text.len() as u64 > MAX_BYTES {
        return Err(FileRule::Short);
    }
    Ok(text)
}

/// Checks the opened file by PostgreSQL's rule for `ssl_key_file`: it is ours and nobody else has access, or it is root's and
/// at most our group reads it.
fn check_permissions(file: &Metadata) -> Result<(), FileRule> {
    let us = backend::system_user();
    if !file.is_file() {
        Err(FileRule::Regular)
    } else if file.uid() != us && file.uid() != 0 {
        Err(FileRule::Owner)
    } else if file.uid() == us && file.mode() & 0o077 != 0 {
        Err(FileRule::Mode)
    } else if file.mode() & 0o037 != 0 {
        Err(FileRule::ModeOfRoot)
    } else {
        Ok(())
    }
}

/// A rule that the key file breaks as a file. Those of its text are [`seal::Rule`].
#[derive(Clone, Copy)]
pub enum FileRule {
    Exists,
    Permitted,
    Readable,
    Regular,
    Owner,
    Mode,
    ModeOfRoot,
    Outside,
    Text,
    Short,
}

impl FileRule {
    /// Returns the rule that a file breaks if the operating system does not open it.
    fn of(error: std::io::Error) -> Self {
        match error.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory => Self::Exists,
            ErrorKind::PermissionDenied => Self::Permitted,
            _ => Self::Readable,
        }
    }

    /// Returns the rule as a sentence.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Exists => "There is no such file.",
            Self::Permitted => "The server has no permission to read the file, or to search a directory above it.",
            Self::Readable => "The server cannot read the file.",
            Self::Regular => "It must be a regular file.",
            Self::Owner => "It must be owned by the operating system user of the server, or by root.",
            Self::Mode => "Group or others have access. The file must have mode 0600 or less.",
            Self::ModeOfRoot => "Others have access. A file of root must have mode 0640 or less.",
            Self::Outside => {
                "It must be outside the data directory. Inside, every backup has it beside what it protects."
            }
            Self::Text => "It must be plain text.",
            Self::Short => "It must be at most 64 kB long.",
        }
    }
}

impl From<FileRule> for Error {
    fn from(rule: FileRule) -> Self {
        Self::KeyFile { line: 0, rule: rule.as_str() }
    }
}

fn is_in_data_directory(path: &Path) -> std::io::Result<bool> {
    Ok(path.canonicalize()?.starts_with(backend::data_directory().canonicalize()?))
}
