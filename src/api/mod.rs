//! The SQL functions, one file per family. They check arguments, call the code that does the work, and shape the answer.

mod arguments;
mod enroll;
mod guard;
mod health;
mod import;
mod in_memory;
mod keys;
mod lifecycle;
mod operations;
mod qr;
mod recovery;
mod rotation;
mod secret_text;
mod status;
mod verify;
