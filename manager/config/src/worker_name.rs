//! Names of workers in the kernel: `NAMESPACE.WATCHER.NUMBER`, as circusd's are.
//!
//! Invariant: only names that `WatcherConfig::worker_name` writes are read as a worker's.

/// The lower-case watcher name and the worker number in a kernel name.
#[must_use]
pub fn worker_of<'a>(namespace: &str, kernel_name: &'a str) -> Option<(&'a str, u32)> {
    let (watcher, wid) = kernel_name
        .strip_prefix(namespace)?
        .strip_prefix('.')?
        .rsplit_once('.')?;
    // Only the one spelling that worker_name writes: `+7` or `07` are somebody else's.
    let number = wid.parse().ok()?;
    (wid == format!("{number}")).then_some((watcher, number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_spelling_is_a_worker() {
        assert_eq!(worker_of("circus", "circus.web.3"), Some(("web", 3)));
        assert_eq!(
            worker_of("circus", "circus.web.api.12"),
            Some(("web.api", 12))
        );
        for other in [
            "circus.web",
            "circus.web.+7",
            "circus.web.07",
            "other.web.1",
            "circusweb.1",
        ] {
            assert_eq!(worker_of("circus", other), None, "{other}");
        }
    }
}
