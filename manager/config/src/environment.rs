//! A worker's environment variables.
//!
//! Owns how `[env]`, `[env:PATTERNS]`, `copy_env` and `$NAME` combine. Two views of the same
//! variables exist, as in Circus: the *raw* one that `$(circus.env.X)` sees while the file is read,
//! and the *final* one the worker gets, where `$NAME` has been replaced. Unlike in Circus,
//! inherited values are never changed and no `__name__` appears.
//! Source: Circus 0.17.2's `get_config` and `parse_env_dict`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use crate::fnmatch;
use crate::ini::Document;
use crate::problem::Findings;
use crate::variables;

/// Variables by name.
pub type Environment = BTreeMap<OsString, OsString>;

/// What `$(circus.env.X)` and `$(circus.config_dir)` mean: names are compared lower-cased. Values
/// that are not UTF-8 cannot stand in a file's text and count as unknown.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Lookup {
    /// By key, lower case, without `circus.`.
    values: HashMap<String, String>,
}

/// The directory of the main file. An addition to Circus's variables: what stands beside the file
/// can be named wherever the manager is started.
const CONFIG_DIR: &str = "config_dir";

impl Lookup {
    /// Adds variables; they replace others of the same lower-case name.
    pub fn extend<'a>(
        &mut self,
        environment: impl IntoIterator<Item = (&'a OsString, &'a OsString)>,
    ) {
        for (name, value) in environment {
            if let (Some(name), Some(value)) = (name.to_str(), value.to_str()) {
                self.values
                    .insert(format!("env.{}", name.to_lowercase()), value.to_owned());
            }
        }
    }

    /// Adds the directory of the main file.
    #[must_use]
    pub fn with_config_dir(mut self, directory: &Path) -> Self {
        if let Some(directory) = directory.to_str() {
            self.values
                .insert(CONFIG_DIR.to_owned(), directory.to_owned());
        }
        self
    }

    /// The value for a variable's key in lower case, without `circus.`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<String> {
        self.values.get(key).cloned()
    }

    /// Replaces the variables of `text` it knows.
    #[must_use]
    pub fn expand(&self, text: &str) -> String {
        variables::replace(text, |key| self.get(key))
    }
}

/// Everything needed to compute a watcher's variables.
#[derive(Debug, Clone, PartialEq)]
pub struct Variables {
    inherited: Environment,
    config_dir: PathBuf,
    /// `[env]`, variables replaced.
    own: Vec<(String, String)>,
    /// `[env:…]` in file order: patterns and raw values.
    matched: Vec<MatchedSection>,
    /// What `$(circus.env.X)` means outside watchers.
    pub global: Lookup,
}

/// One `[env:PATTERNS]` section.
#[derive(Debug, Clone, PartialEq)]
struct MatchedSection {
    patterns: Vec<String>,
    values: Vec<(String, String)>,
}

/// One watcher's variables.
#[derive(Debug)]
pub struct WatcherVariables {
    /// What `$(circus.env.X)` means in the watcher's section.
    pub raw: Lookup,
    /// What its workers get.
    pub environment: Environment,
    /// Names the file's sections, or `given`, set; the rest is inherited.
    pub written: BTreeSet<OsString>,
    /// What `$(circus.env.X)` means in `cmd`, `args` and `shell_args`.
    pub last: Lookup,
}

impl Variables {
    /// Gathers the env sections of `document` on top of `inherited`, the manager's own environment.
    /// `config_dir` is the directory of the main file.
    #[must_use]
    pub fn new(document: &Document, inherited: &Environment, config_dir: &Path) -> Self {
        let mut global = Lookup::default().with_config_dir(config_dir);
        global.extend(inherited);
        // Values of [env] see the inherited variables, not each other.
        let own: Vec<_> = document
            .section("env")
            .into_iter()
            .flat_map(|section| document.entries(section))
            .map(|entry| (entry.key.clone(), global.expand(&entry.value)))
            .collect();
        global.extend(&to_environment(own.iter()));
        let matched = document
            .sections()
            .iter()
            .filter_map(|section| {
                let names = section.name.strip_prefix("env:")?;
                let patterns = names
                    .split(',')
                    .map(|name| name.trim().to_owned())
                    .collect();
                let values = document
                    .entries(section)
                    .map(|entry| (entry.key.clone(), entry.value.clone()))
                    .collect();
                Some(MatchedSection { patterns, values })
            })
            .collect();
        Self {
            inherited: inherited.clone(),
            config_dir: config_dir.to_owned(),
            own,
            matched,
            global,
        }
    }

    /// The variables of the watcher called `name`. `given` replaces what all sections say.
    #[must_use]
    pub fn of_watcher(
        &self,
        name: &str,
        copy_env: bool,
        given: Option<&BTreeMap<String, String>>,
    ) -> WatcherVariables {
        let matching = self
            .matched
            .iter()
            .filter(|section| {
                section
                    .patterns
                    .iter()
                    .any(|pattern| fnmatch::matches(pattern, name))
            })
            .flat_map(|section| &section.values);
        let written: BTreeMap<&str, &str> = match given {
            Some(given) => given
                .iter()
                .map(|(key, value)| (key.as_str(), value.as_str()))
                .collect(),
            None => self
                .own
                .iter()
                .chain(matching)
                .map(|(key, value)| (key.as_str(), value.as_str()))
                .collect(),
        };
        let mut raw = self.global.clone();
        raw.extend(&to_environment(written.iter()));
        let mut environment = if copy_env {
            self.inherited.clone()
        } else {
            Environment::new()
        };
        environment.extend(written.iter().map(|(key, value)| {
            let value = replace_names(value, &self.inherited);
            ((*key).into(), value)
        }));
        let mut last = Lookup::default().with_config_dir(&self.config_dir);
        last.extend(&environment);
        WatcherVariables {
            raw,
            environment,
            written: written.keys().map(OsString::from).collect(),
            last,
        }
    }

    /// Whether any `[env:…]` section's pattern list matches `name`; for sections that match
    /// nothing.
    #[must_use]
    pub fn patterns_match(patterns: &str, name: &str) -> bool {
        patterns
            .split(',')
            .any(|pattern| fnmatch::matches(pattern.trim(), name))
    }
}

fn to_environment<K: AsRef<str>, V: AsRef<str>>(
    values: impl Iterator<Item = impl std::borrow::Borrow<(K, V)>>,
) -> Environment {
    values
        .map(|pair| {
            let (key, value) = pair.borrow();
            (OsString::from(key.as_ref()), OsString::from(value.as_ref()))
        })
        .collect()
}

/// `$NAME` with NAME in capitals becomes the inherited variable, nothing if there is none; `$$NAME`
/// is the text `$NAME`.
fn replace_names(text: &str, inherited: &Environment) -> OsString {
    let mut out = OsString::new();
    each_piece(text, |piece| match piece {
        Piece::Text(text) => out.push(text),
        Piece::Name(name) => {
            if let Some(value) = inherited.get(OsStr::new(name)) {
                out.push(value);
            }
        }
    });
    out
}

/// A part of a value.
enum Piece<'a> {
    Text(&'a str),
    /// A name behind a `$`.
    Name(&'a str),
}

fn each_piece<'a>(text: &'a str, mut take: impl FnMut(Piece<'a>)) {
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        take(Piece::Text(&rest[..at]));
        rest = &rest[at..];
        let length = name_length(&rest[1..]);
        let escaped = rest[1..].strip_prefix('$').map_or(0, name_length);
        if length > 0 {
            take(Piece::Name(&rest[1..=length]));
            rest = &rest[1 + length..];
        } else if escaped > 0 {
            take(Piece::Text(&rest[1..2 + escaped]));
            rest = &rest[2 + escaped..];
        } else {
            take(Piece::Text("$"));
            rest = &rest[1..];
        }
    }
    take(Piece::Text(rest));
}

/// Warns of values in the env sections of `document` whose result is probably not intended.
pub fn report(document: &Document, variables: &Variables, findings: &mut Findings) {
    for section in document.sections() {
        let matched = section.name.starts_with("env:");
        if section.name != "env" && !matched {
            continue;
        }
        for entry in document.entries(section) {
            let place = &entry.value_origin;
            each_piece(&entry.value, |piece| {
                if let Piece::Name(name) = piece
                    && !variables.inherited.contains_key(OsStr::new(name))
                {
                    findings.warn(
                        place,
                        format!(
                            "{}: ${name} is not set and becomes nothing; write $${name} for the text ${name}",
                            entry.key
                        ),
                    );
                }
            });
            if entry
                .value
                .split("$$")
                .skip(1)
                .any(|rest| name_length(rest) > 0)
            {
                findings.differs(
                    place,
                    format!(
                        "{}: `$$` is one `$` here; Circus kept the first and replaced what follows",
                        entry.key
                    ),
                );
            }
            for key in variables::keys(&entry.value) {
                let text = match key.strip_prefix("env.") {
                    Some(name) if matched => format!(
                        "{}: $(circus.env.{name}) is not replaced in [env:NAME], as in Circus; write ${}",
                        entry.key,
                        name.to_uppercase()
                    ),
                    Some(name) if inherited_as(&variables.inherited, name) => continue,
                    Some(name) => format!(
                        "{}: $(circus.env.{name}) is not set and stays as it is written; values of [env] do not see each other",
                        entry.key
                    ),
                    None if key == CONFIG_DIR && !matched => continue,
                    None => format!(
                        "{}: $(circus.{key}) is not replaced here and stays as it is written",
                        entry.key
                    ),
                };
                findings.warn(place, text);
            }
        }
    }
}

/// Whether the environment has this variable, ignoring case as `$(circus.env.X)` does.
fn inherited_as(inherited: &Environment, name: &str) -> bool {
    inherited
        .keys()
        .any(|key| key.to_str().is_some_and(|key| key.to_lowercase() == name))
}

/// Length of the variable name `text` begins with: a capital, then capitals, digits and
/// underscores.
fn name_length(text: &str) -> usize {
    if !text.starts_with(|c: char| c.is_ascii_uppercase()) {
        return 0;
    }
    text.find(|c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'))
        .unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
[env]
A = one
HOMEDIR = $HOME/x
SIBLING = $(circus.env.A) $(circus.env.HOME)
[env:web,w*]
A = two
P = $HOME:${HOME}:$home:$NOPE.
[env:web]
A = three
[env:db]
A = four
";

    fn variables(name: &str, copy_env: bool) -> WatcherVariables {
        let mut document = Document::default();
        document.read(Path::new("f"), TEXT.as_bytes(), &mut Findings::default());
        let inherited: Environment = [("HOME", "/root"), ("ODD", "a$HOME")]
            .map(|(key, value)| (key.into(), value.into()))
            .into();
        Variables::new(&document, &inherited, Path::new("/etc/c")).of_watcher(name, copy_env, None)
    }

    fn get(variables: &WatcherVariables, name: &str) -> Option<String> {
        let value = variables.environment.get(OsStr::new(name))?;
        Some(value.to_str().unwrap().to_owned())
    }

    #[test]
    fn sections_apply_in_file_order() {
        assert_eq!(get(&variables("web", false), "A").unwrap(), "three");
        assert_eq!(get(&variables("wiki", false), "A").unwrap(), "two");
        assert_eq!(get(&variables("db", false), "A").unwrap(), "four");
        assert_eq!(get(&variables("other", false), "A").unwrap(), "one");
        // Patterns mind case, as Circus's do.
        assert_eq!(get(&variables("WEB", false), "A").unwrap(), "one");
    }

    #[test]
    fn dollar_names_come_from_the_inherited_environment() {
        let web = variables("web", false);
        assert_eq!(get(&web, "HOMEDIR").unwrap(), "/root/x");
        assert_eq!(get(&web, "P").unwrap(), "/root:${HOME}:$home:.");
        assert_eq!(get(&web, "SIBLING").unwrap(), "$(circus.env.A) /root");
        assert_eq!(get(&web, "__name__"), None);
    }

    #[test]
    fn two_dollars_are_the_text_of_one() {
        let inherited: Environment = [("HOME".into(), "/root".into())].into();
        for (text, expected) in [
            ("$$HOME", "$HOME"),
            ("a$$HOME.$HOME", "a$HOME./root"),
            ("$$$HOME", "$$HOME"),
            ("$$", "$$"),
            ("pa$$word$", "pa$$word$"),
            ("$$NOPE$NOPE", "$NOPE"),
        ] {
            assert_eq!(replace_names(text, &inherited), expected, "{text}");
        }
    }

    #[test]
    fn values_that_become_nothing_are_reported() {
        let mut document = Document::default();
        let mut findings = Findings::default();
        let text = "[env]\nA = $HOME $NOPE\nB = $$HOME $$NOPE\nC = $(circus.env.home) $(circus.env.A)\n[env:w]\nD = $(circus.env.HOME)";
        document.read(Path::new("f"), text.as_bytes(), &mut findings);
        let inherited: Environment = [("HOME".into(), "/root".into())].into();
        let variables = Variables::new(&document, &inherited, Path::new("/"));
        report(&document, &variables, &mut findings);
        let found: Vec<String> = findings.warnings.iter().map(ToString::to_string).collect();
        assert_eq!(found.len(), 4, "{found:#?}");
        assert!(
            found[0].starts_with("f:2:5: A: $NOPE is not set and becomes nothing; write $$NOPE")
        );
        assert!(found[1].contains("B: `$$` is one `$` here"));
        assert!(found[2].contains("C: $(circus.env.a) is not set"));
        assert!(found[3].contains("D: $(circus.env.home) is not replaced in [env:NAME]"));
    }

    #[test]
    fn inherited_variables_need_copy_env_and_stay_as_they_are() {
        assert_eq!(get(&variables("web", false), "HOME"), None);
        assert_eq!(get(&variables("web", true), "ODD").unwrap(), "a$HOME");
    }

    #[test]
    fn the_directory_of_the_file_is_known_everywhere() {
        let web = variables("web", false);
        for lookup in [&web.raw, &web.last] {
            assert_eq!(lookup.expand("$(circus.config_dir)/log"), "/etc/c/log");
        }
    }

    #[test]
    fn the_raw_view_keeps_dollar_names() {
        let web = variables("web", false);
        assert_eq!(
            web.raw.expand("$(circus.env.homedir)|$(circus.env.home)"),
            "$HOME/x|/root"
        );
        assert_eq!(
            web.last.expand("$(circus.env.homedir)|$(circus.env.home)"),
            "/root/x|$(circus.env.home)"
        );
    }
}
