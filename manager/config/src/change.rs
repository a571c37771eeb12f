//! One watcher with some keys given on the command line instead of in a file: `set` and `add`.
//!
//! Owns putting such keys into a section; reading them is `resolve`'s, so that they obey the same
//! rules and are refused with the same words. Nothing is written to a file.
//! Invariant: the watchers of `base` with the result among them could have come from one file.

use std::collections::BTreeMap;
use std::path::Path;

use crate::ini::Entry;
use crate::known;
use crate::problem::{ConfigErrors, Findings, Origin};
use crate::raw::RawSection;
use crate::resolve;
use crate::types::{Config, WatcherConfig};

/// The file that problems of such keys name.
const PLACE: &str = "command line";

/// Keys and variables given on the command line.
#[derive(Debug, Clone, Copy)]
pub struct Given<'a> {
    /// Texts by key, as a file would have them.
    pub options: &'a BTreeMap<String, String>,
    /// Variables in place of those of `[env]` and `[env:…]`.
    pub env: Option<&'a BTreeMap<String, String>>,
}

/// Returns the watcher `name` of `base` with the given keys.
///
/// # Errors
/// There is no such watcher, a key is not known, or a value is refused.
pub fn with_options(
    base: &Config,
    name: &str,
    given: Given<'_>,
) -> Result<WatcherConfig, ConfigErrors> {
    let place = Origin::whole(Path::new(PLACE));
    let mut findings = Findings::default();
    let Some(watcher) = base.watcher(name) else {
        findings.error(
            &place,
            format!("there is no watcher {name:?}, expected one of the file's"),
        );
        return Err(errors(findings));
    };
    if given.options.contains_key("name") {
        findings.error(&place, "name: a watcher cannot be renamed while it runs");
    }
    let entries = merged(&watcher.entries, given.options, &place, &mut findings);
    let section = RawSection {
        name: watcher.name.clone(),
        origin: watcher.origin.clone(),
        own: entries.len(),
        entries,
    };
    let env = given.env.or(watcher.env_given.as_ref());
    resolved(base, &section, env, findings)
}

/// The watcher comes from [`new_watcher`], not from a file.
#[must_use]
pub fn is_added(watcher: &WatcherConfig) -> bool {
    watcher.origin.file() == Path::new(PLACE)
}

/// Returns a new watcher, which no file has.
///
/// # Errors
/// The name is taken or illegal, a key is not known, or a value is refused.
pub fn new_watcher(
    base: &Config,
    name: &str,
    cmd: &str,
    args: Option<&str>,
    given: Given<'_>,
) -> Result<WatcherConfig, ConfigErrors> {
    let place = Origin::whole(Path::new(PLACE));
    let mut findings = Findings::default();
    if let Some(other) = base.watcher(name) {
        findings.error(
            &place,
            format!("there is a watcher {:?} already", other.name),
        );
    }
    let own: BTreeMap<String, String> = [("cmd", Some(cmd)), ("args", args)]
        .into_iter()
        .filter_map(|(key, value)| Some((key.to_owned(), value?.to_owned())))
        .collect();
    let entries = merged(&[], &own, &place, &mut findings);
    let entries = merged(&entries, given.options, &place, &mut findings);
    let section = RawSection {
        name: name.to_owned(),
        origin: place.clone(),
        own: entries.len(),
        entries,
    };
    resolved(base, &section, given.env, findings)
}

/// `entries` with `options` in place of those of the same key.
fn merged(
    entries: &[Entry],
    options: &BTreeMap<String, String>,
    place: &Origin,
    findings: &mut Findings,
) -> Vec<Entry> {
    let mut entries = entries.to_vec();
    for (key, value) in options {
        if !known::is_watcher_key(key) {
            let hint = match (
                known::foreign::find(key),
                known::suggestion(known::WATCHER, key),
            ) {
                (Some(foreign), _) => {
                    format!(", it is a key of {}; {}", foreign.program, foreign.advice())
                }
                (None, Some(meant)) => format!("; did you mean {meant}?"),
                (None, None) => ", expected a key of [watcher:NAME]".to_owned(),
            };
            findings.error(place, format!("{key} is not known{hint}"));
        }
        let entry = Entry {
            key: key.clone(),
            value: value.trim().to_owned(),
            origin: place.clone(),
            value_origin: place.clone(),
        };
        match entries.iter_mut().find(|entry| entry.key == *key) {
            Some(old) => *old = entry,
            None => entries.push(entry),
        }
    }
    entries
}

fn resolved(
    base: &Config,
    section: &RawSection,
    env: Option<&BTreeMap<String, String>>,
    mut findings: Findings,
) -> Result<WatcherConfig, ConfigErrors> {
    let watcher = resolve::one_watcher(base, section, env, &mut findings);
    if let Some(watcher) = watcher
        && findings.errors.is_empty()
    {
        let mut all: Vec<WatcherConfig> = base
            .watchers
            .iter()
            .filter(|other| other.key != watcher.key)
            .cloned()
            .collect();
        all.push(watcher);
        resolve::depends::check(&all, &mut findings);
        if findings.errors.is_empty()
            && let Some(watcher) = all.pop()
        {
            return Ok(watcher);
        }
    }
    Err(errors(findings))
}

fn errors(findings: Findings) -> ConfigErrors {
    ConfigErrors {
        path: PLACE.into(),
        errors: findings.errors,
        warnings: findings.warnings,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Surroundings, load};

    fn base() -> Config {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("t.ini");
        let text = "[env]\nA = 1\n[watcher:Web]\ncmd = run $(circus.env.A)\nnumprocesses = 2\n[watcher:db]\ncmd = x\ndepends_on = web\n";
        std::fs::write(&path, text).unwrap();
        let around = Surroundings {
            environment: [("HOME".into(), "/root".into())].into(),
            directory: "/srv".into(),
        };
        load(&path, &around).unwrap()
    }

    fn options(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    }

    fn set(base: &Config, name: &str, pairs: &[(&str, &str)]) -> Result<WatcherConfig, String> {
        let options = options(pairs);
        let given = Given {
            options: &options,
            env: None,
        };
        with_options(base, name, given).map_err(|errors| errors.to_string())
    }

    #[test]
    fn a_change_leaves_the_sockets_in_their_order() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("t.ini");
        let text = "[socket:web]\nport = 0\n[socket:admin]\nport = 0\n[watcher:w]\ncmd = x\nuse_sockets = yes\n[socket:c]\nport = 0\n";
        std::fs::write(&path, text).unwrap();
        let base = load(&path, &Surroundings::current().unwrap()).unwrap();
        let order = ["web", "admin", "c"];
        assert_eq!(base.watchers[0].sockets, order);
        let options = [("numprocesses".to_owned(), "2".to_owned())].into();
        let given = Given {
            options: &options,
            env: None,
        };
        assert_eq!(with_options(&base, "w", given).unwrap().sockets, order);
    }

    #[test]
    fn nothing_given_changes_nothing() {
        let base = base();
        assert_eq!(
            &set(&base, "web", &[]).unwrap(),
            base.watcher("web").unwrap()
        );
    }

    #[test]
    fn keys_replace_those_of_the_file_and_each_other() {
        let mut base = base();
        let web = set(&base, "WEB", &[("numprocesses", "5"), ("args", "-v")]).unwrap();
        assert_eq!(
            (web.numprocesses, web.argv_template.join(" ")),
            (5, "run 1 -v".into())
        );
        base.watchers.retain(|watcher| watcher.key != "web");
        base.watchers.push(web);
        let web = set(&base, "web", &[("args", "-q"), ("flapping.window", "9")]).unwrap();
        assert_eq!(
            (web.numprocesses, web.argv_template.join(" ")),
            (5, "run 1 -q".into())
        );
        assert_eq!(web.flapping.unwrap().window.as_secs(), 9);
    }

    #[test]
    fn an_environment_replaces_the_sections_and_stays() {
        let mut base = base();
        let (none, env) = (options(&[]), options(&[("A", "2"), ("H", "$HOME")]));
        let given = Given {
            options: &none,
            env: Some(&env),
        };
        let web = with_options(&base, "web", given).unwrap();
        assert_eq!(web.argv_template, ["run", "2"]);
        assert_eq!(web.env.len(), 2);
        base.watchers.retain(|watcher| watcher.key != "web");
        base.watchers.push(web);
        let web = set(&base, "web", &[("numprocesses", "3")]).unwrap();
        assert_eq!(web.env.len(), 2);
    }

    #[test]
    fn refusals_read_as_in_a_file() {
        let base = base();
        for (name, pairs, expected) in [
            (
                "nope",
                &[][..],
                "command line: there is no watcher \"nope\", expected one of the file's",
            ),
            (
                "web",
                &[("numproceses", "1")],
                "command line: numproceses is not known; did you mean numprocesses?",
            ),
            (
                "web",
                &[("name", "x")],
                "command line: name: a watcher cannot be renamed while it runs",
            ),
            (
                "web",
                &[("numprocesses", "many")],
                "command line: numprocesses \"many\": expected a whole number from 0 to 10000",
            ),
            (
                "web",
                &[("depends_on", "db")],
                "command line: depends_on \"web\": ",
            ),
        ] {
            let error = set(&base, name, pairs).unwrap_err();
            if pairs == [("depends_on", "db")] {
                assert!(error.contains("they wait for each other: "), "{error}");
            } else {
                assert_eq!(error, expected);
            }
        }
    }

    #[test]
    fn a_new_watcher_is_like_one_of_a_file() {
        let base = base();
        let given_options = options(&[("numprocesses", "3"), ("rlimit_nofile", "9")]);
        let given = Given {
            options: &given_options,
            env: None,
        };
        let made = new_watcher(&base, "New", "sleep", Some("'1 2'"), given).unwrap();
        assert_eq!((made.key.as_str(), made.numprocesses), ("new", 3));
        assert_eq!(made.argv_template, ["sleep", "1 2"]);
        assert_eq!(made.env.len(), 1, "[env] holds for it too");
        assert!(new_watcher(&base, "WEB", "x", None, given).is_err());
        assert!(new_watcher(&base, "a:b", "x", None, given).is_err());
        assert!(new_watcher(&base, "n", "'open", None, given).is_err());
    }
}
