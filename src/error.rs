//! The error that ends a command: a text for the user and an exit code. A stage that fails is none of these.

use std::fmt::{self, Display};

/// Bad usage, a bad pipeline, or an input that is not there.
pub const BAD_INPUT: u8 = 2;
/// The store, the lock file or the machine.
pub const ENVIRONMENT: u8 = 3;

/// Why a command ended. The text is `location: thing: what`, hints on lines of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    pub code: u8,
    pub text: String,
}

impl Error {
    pub fn input(text: impl Display) -> Error {
        Error { code: BAD_INPUT, text: text.to_string() }
    }

    pub fn environment(text: impl Display) -> Error {
        Error { code: ENVIRONMENT, text: text.to_string() }
    }
}

impl Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Error {}

impl From<crate::parse::Diagnostics> for Error {
    fn from(diagnostics: crate::parse::Diagnostics) -> Error {
        Error::input(diagnostics)
    }
}

/// `path: what` of an operation on a file.
pub fn at(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Error + '_ {
    move |error| Error::environment(format!("{}: {error}", path.display()))
}
