//! A configuration as it is kept in the kernel while a change of it is under way.
//!
//! Owns the form: the contents of all files, read as one. Fields are optional for readers of other
//! versions.

use serde::{Deserialize, Serialize};

/// The files of a configuration read as one: keys and values as written.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct KeptDocument {
    /// Keys of `[DEFAULT]`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub defaults: Vec<(String, String)>,
    /// Every section and its own keys, in file order.
    pub sections: Vec<KeptSection>,
}

/// One section.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct KeptSection {
    /// What is between the brackets.
    pub name: String,
    /// Keys and values in file order.
    pub entries: Vec<(String, String)>,
}
