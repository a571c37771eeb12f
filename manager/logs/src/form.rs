//! What the lines of a stream look like, as the control socket tells those who read them.

use papa_config::StreamConfig;
use serde::{Deserialize, Serialize};

/// Where a stream's lines can be read, and how they say when they were written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "form", rename_all = "snake_case")]
pub enum LineForm {
    /// In the file, as they came.
    Plain,
    /// In the file, behind `TIME [PID] | `.
    Stamped {
        /// strftime format of TIME.
        time_format: String,
    },
    /// In the file, as objects.
    Json,
    /// In no file; in the kernel while it keeps them.
    Kernel,
    /// Nowhere.
    Nowhere,
}

impl LineForm {
    /// That of a stream with this configuration.
    #[must_use]
    pub fn of(stream: &StreamConfig) -> Self {
        match stream {
            StreamConfig::Null => Self::Nowhere,
            StreamConfig::File(file) if file.json => Self::Json,
            StreamConfig::File(file) => match &file.time_format {
                Some(time_format) => Self::Stamped {
                    time_format: time_format.clone(),
                },
                None => Self::Plain,
            },
            StreamConfig::Unset
            | StreamConfig::Stdout
            | StreamConfig::Fancy(_)
            | StreamConfig::Syslog(_) => Self::Kernel,
        }
    }
}
