//! A place in a configuration file and what is wrong there.
//!
//! Owns the rendering `FILE:LINE:COLUMN: text`, the same for errors and warnings; knows nothing of
//! keys or types.
//! Invariant: a problem always names a file, and a place in it unless the file as a whole is meant.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A place in a configuration file.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin {
    file: Arc<Path>,
    /// Counted from 1; 0 means the file as a whole.
    line: usize,
    /// In characters, counted from 1; 0 means the line as a whole.
    column: usize,
}

impl Origin {
    /// The line `line` (counted from 1) of `file`.
    #[must_use]
    pub fn new(file: Arc<Path>, line: usize) -> Self {
        Self {
            file,
            line,
            column: 0,
        }
    }

    /// The character `column` (counted from 1) of the same line.
    #[must_use]
    pub fn at_column(&self, column: usize) -> Self {
        Self {
            column,
            ..self.clone()
        }
    }

    /// The file as a whole.
    #[must_use]
    pub fn whole(file: &Path) -> Self {
        Self::new(Arc::from(file), 0)
    }

    /// The file, as it was named when it was opened.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The line, counted from 1; 0 for the file as a whole.
    #[must_use]
    pub fn line(&self) -> usize {
        self.line
    }

    /// The character in the line, counted from 1; 0 for the line as a whole.
    #[must_use]
    pub fn column(&self) -> usize {
        self.column
    }
}

/// No file: of a section that is not filled in yet.
impl Default for Origin {
    fn default() -> Self {
        Self::whole(Path::new(""))
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        for number in [self.line, self.column] {
            if number == 0 {
                break;
            }
            write!(f, ":{number}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One thing found in a configuration: what was found and what is accepted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Where it was found.
    pub origin: Origin,
    /// One sentence, lower case, without a full stop.
    pub message: String,
}

impl Problem {
    /// A problem at `origin`.
    pub fn new(origin: &Origin, message: impl Into<String>) -> Self {
        Self {
            origin: origin.clone(),
            message: message.into(),
        }
    }

    /// `FILE:LINE:COLUMN: KIND: text`, as compilers write it and editors read it.
    #[must_use]
    pub fn labelled(&self, kind: &str) -> String {
        format!("{}: {kind}: {}", self.origin, self.message)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.origin, self.message)
    }
}

/// Errors and warnings gathered while a configuration is read, so that all are reported at once.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Findings {
    /// What makes the configuration unusable.
    pub errors: Vec<Problem>,
    /// What is accepted but probably not what was meant.
    pub warnings: Vec<Problem>,
    /// Whoever wrote the file knows where a value means something else than in Circus.
    pub differences_known: bool,
}

impl Findings {
    /// Notes that a value means something else than in Circus.
    pub fn differs(&mut self, origin: &Origin, message: impl Into<String>) {
        if !self.differences_known {
            self.warn(origin, message);
        }
    }

    /// Notes an error.
    pub fn error(&mut self, origin: &Origin, message: impl Into<String>) {
        self.errors.push(Problem::new(origin, message));
    }

    /// Notes a warning.
    pub fn warn(&mut self, origin: &Origin, message: impl Into<String>) {
        self.warnings.push(Problem::new(origin, message));
    }
}

/// A configuration that cannot be used, with everything that is wrong with it.
#[derive(Debug, thiserror::Error)]
pub struct ConfigErrors {
    /// The configuration file as it was named.
    pub path: PathBuf,
    /// Every error in file order.
    pub errors: Vec<Problem>,
    /// Every warning in file order.
    pub warnings: Vec<Problem>,
}

impl ConfigErrors {
    /// Every error on a line of its own, as `papactl check` prints it.
    #[must_use]
    pub fn listed(&self) -> String {
        let lines = self.errors.iter();
        let lines: Vec<_> = lines.map(|error| error.labelled("error")).collect();
        lines.join("\n")
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.errors.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}
