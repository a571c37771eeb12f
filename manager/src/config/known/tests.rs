//! Suggestions; the tables against the reader of values and against the reference page.

use super::*;

#[test]
fn misspelt_keys_are_recognised() {
    assert_eq!(suggestion(WATCHER, "numproceses"), Some("numprocesses"));
    assert_eq!(suggestion(WATCHER, "Numprocesses"), Some("numprocesses"));
    assert_eq!(suggestion(WATCHER, "cdm"), Some("cmd"));
    assert_eq!(suggestion(WATCHER, "active"), None);
    assert_eq!(suggestion(WATCHER, "stats_base_port"), None);
    assert_eq!(nearest(SECTIONS, "wacher"), Some("watcher"));
}
