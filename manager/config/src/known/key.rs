//! What is said of a key, and how its value is read and shown.
//!
//! Owns the form of an entry in the tables and of its value. `yes_no!`, `seconds!`, `number!` and
//! so on begin an entry whose value is a field of its section's type; `Key::new` begins one that is
//! read by code of its own.
//! Invariant: what `show` gives is text that `read` turns into the same value.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use crate::scalar;
use crate::types::{SocketConfig, StreamClass};

/// How a difference comes into force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Apply {
    /// No worker is replaced.
    InPlace,
    /// By a rolling reload.
    Roll,
    /// Stopped, then started: a singleton's generations cannot overlap.
    Restart,
}

/// Largest whole number of a key that nothing else bounds.
pub(super) const MAX_WHOLE: i64 = i32::MAX as i64;

/// One key of a section; `S` is the type that holds the section's values.
pub struct Key<S: 'static> {
    /// As written in a file. Capitals stand for a free part: `rlimit_NAME`.
    pub name: &'static str,
    /// What its value is.
    pub form: Form,
    /// What holds without it.
    pub default: Initial,
    /// What it does.
    pub meaning: &'static str,
    /// A value someone may have.
    pub example: &'static str,
    /// Whether it is obeyed.
    pub effect: Effect,
    /// How a changed value comes into force.
    pub change: OnChange<S>,
    /// Stores a value in its field. None: code of its own reads the key.
    pub read: Option<Read<S>>,
    /// The field's value as text. None: it is shown with another key, or not at all.
    pub show: Option<Show<S>>,
    /// An empty value counts as none.
    pub may_be_blank: bool,
    /// A watcher's command may refer to it as `$(circus.KEY)`.
    pub in_commands: bool,
    /// Classes of a stream that read the key; empty where a section has no classes.
    pub classes: &'static [StreamClass],
}

/// Stores a value in its field, or says what is expected.
pub type Read<S> = fn(&mut S, Written<'_>) -> Result<(), String>;
/// A field's value as it would be written; none where the section as it is does not have it.
pub type Show<S> = fn(&S) -> Option<String>;

/// A value's text, variables replaced, and what it refers to.
#[derive(Debug, Clone, Copy)]
pub struct Written<'a> {
    /// The text as written, spaces around it included.
    pub text: &'a str,
    /// Where relative paths begin, absolute.
    pub directory: &'a Path,
    /// The sockets of the configuration.
    pub sockets: &'a [SocketConfig],
}

/// What a value looks like in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `yes`, `true`, `on`, `1` and their opposites.
    YesNo,
    /// Seconds, fractions allowed, not negative.
    Seconds,
    /// Seconds of something that repeats, see [`scalar::period`].
    Period,
    /// A whole number in these bounds.
    Number(i64, i64),
    /// A whole number, or -1: for ever.
    NumberOrEver,
    /// A signal's name or number.
    Signal,
    /// Anything else, described in these words.
    Text(&'static str),
}

impl Form {
    /// The words of the reference page.
    #[must_use]
    pub fn accepts(self) -> String {
        match self {
            Self::YesNo => "yes or no".to_owned(),
            Self::Seconds => "seconds".to_owned(),
            Self::Period => format!("seconds, at least {}", scalar::MIN_PERIOD.as_secs_f64()),
            Self::Number(min, max) if max < MAX_WHOLE => format!("{min} to {max}"),
            Self::Number(min, _) if min >= 0 => format!("whole number from {min}"),
            Self::Number(..) => "whole number".to_owned(),
            Self::NumberOrEver => "whole number, -1 for ever".to_owned(),
            Self::Signal => "signal".to_owned(),
            Self::Text(words) => words.to_owned(),
        }
    }
}

/// What holds when a key is not written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Initial {
    /// As if this were written.
    Value(&'static str),
    /// Something that cannot be written, in words; empty: nothing.
    Words(&'static str),
}

/// What a key does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It is obeyed.
    Active,
    /// It is kept and shown and has no effect; whoever writes it is told so. The text follows the
    /// key's name.
    Inactive(&'static str),
    /// It has no effect and needs none, so nobody is told.
    Needless,
}

/// How a changed value comes into force.
pub enum OnChange<S: 'static> {
    /// No worker is replaced.
    InPlace,
    /// By replacing the workers.
    Roll,
    /// By closing the socket and opening it again, and replacing the workers that have it.
    Reopen,
    /// When the manager is started again.
    Restart,
    /// As the words say; the function decides by the section's values.
    By(&'static str, fn(&S) -> Apply),
    /// There is nothing to come into force.
    Never,
}

impl<S> OnChange<S> {
    /// The words of the reference page.
    #[must_use]
    pub fn words(&self) -> &'static str {
        match self {
            Self::InPlace => "in place",
            Self::Roll => "rolling reload",
            Self::Reopen => "socket reopened",
            Self::Restart => "restart of the manager",
            Self::By(words, _) => words,
            Self::Never => "",
        }
    }

    /// What a different value asks for.
    #[must_use]
    pub fn apply(&self, section: &S) -> Apply {
        match self {
            Self::Roll | Self::Reopen => Apply::Roll,
            Self::By(_, decide) => decide(section),
            Self::InPlace | Self::Restart | Self::Never => Apply::InPlace,
        }
    }
}

impl<S> Clone for OnChange<S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S> Copy for OnChange<S> {}

impl<S> fmt::Debug for Key<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl<S> fmt::Debug for OnChange<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.words())
    }
}

impl<S> Clone for Key<S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S> Copy for Key<S> {}

impl<S> Key<S> {
    /// A key that is obeyed, applied in place and read by code of its own.
    pub(super) const fn new(name: &'static str, form: Form) -> Self {
        Self {
            name,
            form,
            default: Initial::Words(""),
            meaning: "",
            example: "",
            effect: Effect::Active,
            change: OnChange::InPlace,
            read: None,
            show: None,
            may_be_blank: false,
            in_commands: false,
            classes: &[],
        }
    }

    /// A key that is accepted without effect.
    pub(super) const fn inert(name: &'static str, form: Form, effect: Effect) -> Self {
        Self {
            effect,
            change: OnChange::Never,
            ..Self::new(name, form)
        }
    }

    /// The value is a field that `read` stores and `show` shows.
    pub(super) const fn field(self, read: Read<S>, show: Show<S>) -> Self {
        Self {
            read: Some(read),
            show: Some(show),
            ..self
        }
    }

    /// `read` alone: the value is only checked, or is shown with another key.
    pub(super) const fn read(self, read: Read<S>) -> Self {
        Self {
            read: Some(read),
            ..self
        }
    }

    /// `show` alone: code of its own reads the key.
    pub(super) const fn show(self, show: Show<S>) -> Self {
        Self {
            show: Some(show),
            ..self
        }
    }

    /// What holds when nothing is written, as if `text` were.
    pub(super) const fn default(self, text: &'static str) -> Self {
        Self {
            default: Initial::Value(text),
            ..self
        }
    }

    /// What holds when nothing is written, where that cannot be written.
    pub(super) const fn without(self, words: &'static str) -> Self {
        Self {
            default: Initial::Words(words),
            ..self
        }
    }

    pub(super) const fn meaning(self, meaning: &'static str) -> Self {
        Self { meaning, ..self }
    }

    pub(super) const fn example(self, example: &'static str) -> Self {
        Self { example, ..self }
    }

    pub(super) const fn change(self, change: OnChange<S>) -> Self {
        Self { change, ..self }
    }

    /// An empty value counts as none.
    pub(super) const fn or_blank(self) -> Self {
        Self {
            may_be_blank: true,
            ..self
        }
    }

    /// A watcher's command may refer to it as `$(circus.KEY)`.
    pub(super) const fn in_commands(self) -> Self {
        Self {
            in_commands: true,
            ..self
        }
    }

    /// Only these classes of a stream read it.
    pub(super) const fn of_classes(self, classes: &'static [StreamClass]) -> Self {
        Self { classes, ..self }
    }

    /// Whether the name stands for many keys: `rlimit_NAME`.
    #[must_use]
    pub fn is_family(&self) -> bool {
        self.name.contains(char::is_uppercase)
    }

    /// The fixed first part of a family's names: `rlimit_`.
    #[must_use]
    pub fn prefix(&self) -> Option<&'static str> {
        self.name
            .find(char::is_uppercase)
            .map(|at| &self.name[..at])
    }
}

/// As files have it.
#[must_use]
pub fn yes_no(value: &bool) -> String {
    if *value { "yes" } else { "no" }.to_owned()
}

/// As files have it: `0.5`.
pub(super) fn seconds(duration: &Duration) -> String {
    duration.as_secs_f64().to_string()
}

/// As files have it: -1 for none.
pub(super) fn or_ever(number: &Option<u32>) -> String {
    number.map_or("-1".to_owned(), |number| number.to_string())
}

/// An octal mask with the leading 0 that `[socket:NAME]` needs.
pub(super) fn mask(mask: &u32) -> String {
    format!("0{mask:02o}")
}

/// An absolute path as files have it.
pub(super) fn path(path: &Path) -> String {
    path.display().to_string()
}

/// A whole number from `min` to `max` that fits `T`.
///
/// # Errors
/// Not a whole number, or out of range.
pub(super) fn to_number<T: TryFrom<i64>>(text: &str, min: i64, max: i64) -> Result<T, String> {
    let number = scalar::whole(text, min, max)?;
    T::try_from(number).map_err(|_| format!("expected a whole number from {min} to {max}"))
}

/// A whole number; none for -1, which means for ever.
///
/// # Errors
/// Not a whole number, or out of range.
pub(super) fn to_number_or_ever(text: &str) -> Result<Option<u32>, String> {
    scalar::whole(text, -1, MAX_WHOLE).map(|number| u32::try_from(number).ok())
}

// The macros name the type `Section`, which each table's file declares: an entry's closures need
// to know whose field it is.

/// A key whose value is the field at a path, read and shown by the two functions.
macro_rules! value {
    ($name:literal, $form:expr, $($field:ident).+, $read:path, $show:path $(,)?) => {
        Key::new($name, $form).field(
            |section: &mut Section, written| {
                section.$($field).+ = $read(written.text)?;
                Ok(())
            },
            |section: &Section| Some($show(&section.$($field).+)),
        )
    };
}

/// A key whose value is an `Option`; an empty text counts as none.
macro_rules! optional {
    ($name:literal, $form:expr, $($field:ident).+, $read:path, $show:path $(,)?) => {
        Key::new($name, $form)
            .field(
                |section: &mut Section, written| {
                    section.$($field).+ = Some($read(written.text)?);
                    Ok(())
                },
                |section: &Section| {
                    Some(section.$($field).+.as_ref().map_or(String::new(), $show))
                },
            )
            .or_blank()
    };
}

/// A path, an `Option<PathBuf>`; a relative one begins at the manager's working directory.
macro_rules! path {
    ($name:literal, $($field:ident).+) => {
        Key::new($name, PATH)
            .field(
                |section: &mut Section, written| {
                    section.$($field).+ = Some(written.directory.join(written.text.trim()));
                    Ok(())
                },
                |section: &Section| {
                    Some(section.$($field).+.as_deref().map_or(String::new(), key::path))
                },
            )
            .or_blank()
    };
}

/// `yes` or `no`, a `bool`.
macro_rules! flag {
    ($name:literal, $($field:ident).+) => {
        value!($name, Form::YesNo, $($field).+, scalar::boolean, key::yes_no)
    };
}

/// Seconds, a `Duration`.
macro_rules! seconds {
    ($name:literal, $($field:ident).+) => {
        value!($name, Form::Seconds, $($field).+, scalar::seconds, key::seconds)
    };
}

/// Seconds of something that repeats, a `Duration`.
macro_rules! period {
    ($name:literal, $($field:ident).+) => {
        value!($name, Form::Period, $($field).+, scalar::period, key::seconds)
    };
}

/// A whole number, or -1 for ever, an `Option<u32>`.
macro_rules! number_or_ever {
    ($name:literal, $($field:ident).+) => {
        value!($name, Form::NumberOrEver, $($field).+, key::to_number_or_ever, key::or_ever)
    };
}

/// A whole number in bounds.
macro_rules! number {
    ($name:literal, $min:expr, $max:expr, $($field:ident).+) => {
        Key::new($name, Form::Number($min, $max)).field(
            |section: &mut Section, written| {
                section.$($field).+ = key::to_number(written.text, $min, $max)?;
                Ok(())
            },
            |section: &Section| Some(section.$($field).+.to_string()),
        )
    };
}
