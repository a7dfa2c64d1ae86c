//! The SQL functions, one file per family. They check arguments, call what does the work, and shape the answer.

mod arguments;
mod enroll;
mod health;
mod health_rights;
mod import;
mod in_memory;
mod internal;
mod keys;
mod lifecycle;
mod operations;
mod qr;
mod recovery;
mod shown;
mod status;
mod verify;
