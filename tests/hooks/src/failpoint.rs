//! Where a test has a process stand still, to kill it exactly there.
//!
//! Owns the named places of all programs of this workspace: in a build with debug assertions a
//! process whose environment says `PAPA_FAILPOINTS=DIR` looks, at each place it reaches, for a file
//! of that name in the directory. If there is one, the process takes it away, leaves `NAME.hit`
//! with its role and number instead, and stops itself as by SIGSTOP; continued, it goes on. The
//! file may say at which time of reaching it (a number) and in which role (a word); a place that
//! several processes reach needs the word.
//! Leaves to others: how a process stops itself (this crate has no system calls), and what a test
//! does then.
//! Invariant: of one armed file one stop comes, and never a second one; in a release build nothing
//! of this exists.

#[cfg(debug_assertions)]
pub use armed::{is_armed, reach, start, take};
#[cfg(not(debug_assertions))]
pub use unarmed::{is_armed, reach, start, take};

#[cfg(not(debug_assertions))]
mod unarmed {
    /// Nothing, in this build.
    #[inline(always)]
    pub fn start(_: &'static str, _: fn()) {}

    /// Nothing, in this build.
    #[inline(always)]
    pub fn reach(_: &str) {}

    /// False, in this build.
    #[inline(always)]
    #[must_use]
    pub fn take(_: &str) -> bool {
        false
    }

    /// False, in this build.
    #[inline(always)]
    #[must_use]
    pub fn is_armed(_: &str) -> bool {
        false
    }
}

#[cfg(debug_assertions)]
mod armed {
    use std::fs;
    use std::io;
    use std::path::PathBuf;
    use std::process;
    use std::sync::OnceLock;

    /// The directory of armed places.
    const VARIABLE: &str = "PAPA_FAILPOINTS";

    static PLACES: OnceLock<Places> = OnceLock::new();

    struct Places {
        directory: PathBuf,
        role: &'static str,
        stop: fn(),
    }

    /// Says which role this process has and how it stops itself. Without the variable in the
    /// environment, or without this call, no place is ever reached.
    pub fn start(role: &'static str, stop: fn()) {
        if let Some(directory) = std::env::var_os(VARIABLE) {
            let places = Places {
                directory: directory.into(),
                role,
                stop,
            };
            // Only the first call of a process counts.
            let _ = PLACES.set(places);
        }
    }

    /// Stops here, if this place is armed.
    pub fn reach(place: &str) {
        if take(place)
            && let Some(places) = PLACES.get()
        {
            (places.stop)();
        }
    }

    /// Takes the arming of a place and reports it, but leaves the stopping to the caller: for
    /// places where only system calls are possible.
    #[must_use]
    pub fn take(place: &str) -> bool {
        // A directory that is gone or full: then nothing is armed.
        PLACES
            .get()
            .is_some_and(|places| places.take(place).unwrap_or(false))
    }

    /// Whether a place is armed for us, now or for a later time.
    #[must_use]
    pub fn is_armed(place: &str) -> bool {
        PLACES
            .get()
            .is_some_and(|places| places.left(place).is_some())
    }

    impl Places {
        /// How often the place is still to be reached until it counts.
        fn left(&self, place: &str) -> Option<u64> {
            let text = fs::read_to_string(self.directory.join(place)).ok()?;
            let mut left = 1;
            for word in text.split_whitespace() {
                match word.parse() {
                    Ok(number) => left = number,
                    Err(_) if word == self.role => {}
                    Err(_) => return None,
                }
            }
            Some(left)
        }

        fn take(&self, place: &str) -> io::Result<bool> {
            let Some(left) = self.left(place) else {
                return Ok(false);
            };
            let armed = self.directory.join(place);
            let ours = self.directory.join(format!("{place}.{}", process::id()));
            if left > 1 {
                fs::write(&ours, format!("{} {}", left - 1, self.role))?;
                fs::rename(ours, armed)?;
                return Ok(false);
            }
            match fs::rename(armed, &ours) {
                Ok(()) => {}
                // Another process was here first.
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
                Err(error) => return Err(error),
            }
            fs::write(&ours, format!("{} {}\n", self.role, process::id()))?;
            fs::rename(ours, self.directory.join(format!("{place}.hit")))?;
            Ok(true)
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        fn places(directory: &tempfile::TempDir) -> Places {
            Places {
                directory: directory.path().to_owned(),
                role: "kernel",
                stop: || {},
            }
        }

        #[test]
        fn an_armed_place_is_taken_once() {
            let directory = tempfile::tempdir().unwrap();
            let places = places(&directory);
            assert!(!places.take("here").unwrap());
            fs::write(directory.path().join("here"), "").unwrap();
            assert!(places.take("here").unwrap());
            assert!(!places.take("here").unwrap());
            let hit = fs::read_to_string(directory.path().join("here.hit")).unwrap();
            assert_eq!(hit, format!("kernel {}\n", process::id()));
        }

        #[test]
        fn a_number_counts_and_a_role_is_minded() {
            let directory = tempfile::tempdir().unwrap();
            let places = places(&directory);
            fs::write(directory.path().join("here"), "keeper").unwrap();
            assert!(!places.take("here").unwrap());
            fs::write(directory.path().join("here"), "3 kernel").unwrap();
            let taken: Vec<bool> = (0..4).map(|_| places.take("here").unwrap()).collect();
            assert_eq!(taken, [false, false, true, false]);
        }
    }
}
