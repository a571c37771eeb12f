//! What the manager must still know after its own death, as values in the kernel.
//!
//! Owns their names and their form: one JSON object per watcher under
//! `NAMESPACE.manager.watcher.WATCHER`, one per watcher that no file names under
//! `NAMESPACE.manager.added.WATCHER`, one for a change of the configuration under way under
//! `NAMESPACE.manager.change`, one for what ended workers left behind under
//! `NAMESPACE.manager.left`, workers' file mode mask under `NAMESPACE.manager.umask`, and the held
//! log state under `NAMESPACE.manager.logs`. Reading is tolerant: a field that is missing has its
//! default and one that is not known is passed over, so that an older or newer manager can take
//! over.

use std::collections::{BTreeMap, BTreeSet};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::backoff::Backoff;
use crate::config::kept::KeptDocument;
use crate::config::{Release, SignalNumber};

/// Longest message kept, in characters: a reason and a name or two.
pub const MAX_MESSAGE_CHARS: usize = 512;
/// Recent ends of workers kept of one watcher; of more attempts within a flapping window only these
/// are remembered.
pub const MAX_ENDS: usize = 64;
/// Sessions of ended workers that are kept; what more workers leave behind at once is asked to end
/// and not killed by a successor.
pub const MAX_LEFT: usize = 256;
/// Members kept of each such session.
pub const MAX_LEFT_MEMBERS: usize = 64;
/// Largest configuration kept while it is changed, in bytes of JSON: a quarter of the kernel's
/// largest value, and far beyond any file seen. A change from a larger one is not taken up by a
/// successor.
pub const MAX_CHANGE_BYTES: usize = 256 * 1024;

/// What is kept of one watcher.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Kept {
    /// The operator stopped it (`true`) or started it (`false`), whatever `autostart` says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stopped: Option<bool>,
    /// A restart was asked for and not everything has ended yet.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub restarting: bool,
    /// Serials of workers that ended and are not to be started again (`respawn = false`).
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub finished: BTreeSet<u64>,
    /// Those of `finished` that did not end with 0.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub failed: BTreeSet<u64>,
    /// Serials of workers whose end was dealt with and that the kernel still lists.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub ended: BTreeSet<u64>,
    /// By worker number: how its restarts went, and until when it waits.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub backoff: BTreeMap<u32, KeptBackoff>,
    /// How often the watcher flapped, and until when it pauses.
    #[serde(skip_serializing_if = "is_default")]
    pub flapping: KeptFlapping,
    /// Starting it had no prospect; it is stopped until a person asks again.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub gave_up: bool,
    /// When that was, in milliseconds since the epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gave_up_ms: Option<u64>,
    /// What hinders it, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// It has been up since it was asked to run; only for watchers that depend on others.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub came_up: bool,
    /// A connection has started it, and it has not gone back to waiting for one; only for watchers
    /// with `on_demand`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub demanded: bool,
    /// The number of workers asked for at run time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<KeptCount>,
    /// Number of the reload that started the workers wanted now; 0 until the first.
    #[serde(skip_serializing_if = "is_default")]
    pub generation: u64,
    /// Highest number any reload had.
    #[serde(skip_serializing_if = "is_default")]
    pub generations: u64,
    /// A reload is under way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub roll: Option<KeptRoll>,
    /// Serials of workers that said they serve; only for watchers with `ready`.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub ready: BTreeSet<u64>,
    /// By serial of a worker: health checks that failed in a row.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub failures: BTreeMap<u64, u32>,
    /// By serial of a worker that was asked to end: when it is killed, in milliseconds since the
    /// epoch.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub stopping: BTreeMap<u64, u64>,
    /// By serial of such a worker: the signal's number, where it was asked with another than the
    /// configured one.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub signals: BTreeMap<u64, i32>,
    /// By serial of a worker that has ended and left something running: what that is.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub left: BTreeMap<u64, KeptRemains>,
    /// Options set at run time, as typed.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub set: BTreeMap<String, String>,
    /// The whole environment section set at run time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env: Option<BTreeMap<String, String>>,
    /// Where its workers start, if a link leads there: a successor does not follow the link anew.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub release: Option<Release>,
    /// Where that last led when the reload was rolled back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed_release: Option<Release>,
    /// `release` was deleted: where workers were started in its place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub moved: Option<Release>,
    /// No file names it any more; its workers are being stopped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub removing: Option<KeptRemoval>,
}

/// How the workers of a watcher that is no more are stopped, as its file had it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct KeptRemoval {
    /// Its name as written.
    pub name: String,
    /// The signal's number.
    pub stop_signal: i32,
    /// To the workers' children too.
    pub stop_children: bool,
    /// How long they may take, in seconds.
    pub graceful_timeout: String,
    /// Its options as written that say where output goes.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub streams: BTreeMap<String, String>,
}

/// What a worker that has ended left running.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct KeptRemains {
    /// The worker's number, which is not free yet.
    pub wid: u32,
    /// The process id it had.
    pub pid: i32,
    /// When it was started, in microseconds since the epoch.
    pub started_us: u64,
    /// When what is left is killed, in milliseconds since the epoch.
    pub kill_at_ms: u64,
    /// The worker had been asked to end.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub asked: bool,
    /// What is left may run on: the worker went into the background.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub may_stay: bool,
    /// The signal's number, where it is not the configured one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// At most [`MAX_LEFT_MEMBERS`] processes by number and start, in ticks since boot.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<(i32, u64)>,
}

/// A worker's restart record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct KeptBackoff {
    /// Quick ends in a row.
    pub record: Backoff,
    /// No start before this, in milliseconds since the epoch.
    pub until_ms: u64,
}

/// A watcher's flapping record.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct KeptFlapping {
    /// Pauses so far.
    pub pauses: u32,
    /// No start before this, in milliseconds since the epoch.
    pub until_ms: u64,
    /// The latest unexpected ends, in milliseconds since the epoch, oldest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ends_ms: Vec<u64>,
}

/// A number of workers that was asked for at run time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct KeptCount {
    /// What the file said then; when it says something else, the file is right.
    pub file: u32,
    /// What is wanted.
    pub now: u32,
}

/// A rolling reload under way.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct KeptRoll {
    /// The generation that takes over.
    pub to: u64,
    /// One goes before one comes.
    pub sequential: bool,
    /// It takes a change of the configuration back; so what it returns to, should it fail, is as
    /// that change had it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub takes_back: bool,
    /// What to return to; none: begun by an older manager.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<KeptBefore>,
}

/// What a rolling reload returns to when it fails. The rest of the settings is in the file, or in
/// the change that is under way.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct KeptBefore {
    /// The generation of the workers wanted before.
    pub generation: u64,
    /// Where they started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub release: Option<Release>,
    /// And where they were started in its place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub moved: Option<Release>,
    /// Options set at run time.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub set: BTreeMap<String, String>,
    /// The whole environment section set at run time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env: Option<BTreeMap<String, String>>,
}

/// A change of the configuration under way: the way back, and who is on it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct KeptChange {
    /// It is being taken back, for this reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub undoing: Option<String>,
    /// The files before, read as one.
    pub before: KeptDocument,
    /// Lower-case names of watchers no file had when it began; others came since.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub added: BTreeSet<String>,
    /// By lower-case name of a watcher it reloads: the generation of its workers before that.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub rolls: BTreeMap<String, u64>,
    /// By lower-case name of a watcher: where its workers started before.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub releases: BTreeMap<String, Release>,
}

/// What workers that were asked to end have left behind.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct KeptLeft {
    /// By the worker that led them, at most [`MAX_LEFT`].
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub sessions: BTreeMap<i32, KeptSession>,
}

/// What is left of one worker. Processes are named by number and start, in ticks since boot.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct KeptSession {
    /// When it is killed, in milliseconds since the epoch.
    pub kill_at_ms: u64,
    /// Members of its session.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<(i32, u64)>,
    /// Descendants that had left the session.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub escaped: Vec<(i32, u64)>,
}

/// Reads a value; anything unreadable counts as nothing kept. `what` it is, for people.
#[must_use]
pub fn parse<T: DeserializeOwned>(what: &str, value: &[u8]) -> Option<T> {
    serde_json::from_slice(value)
        .inspect_err(|error| tracing::warn!(%error, what, "ignoring state saved in the kernel that cannot be read"))
        .ok()
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Kept {
    /// Reads a value; anything unreadable counts as nothing kept.
    #[must_use]
    pub fn parse(value: &[u8]) -> Self {
        parse("a watcher's state", value).unwrap_or_default()
    }

    /// The signal a worker was asked to end with, if not with the configured one; a number that is
    /// none counts as nothing kept.
    #[must_use]
    pub fn own_signal(&self, serial: u64) -> Option<SignalNumber> {
        SignalNumber::try_from(*self.signals.get(&serial)?).ok()
    }

    /// The value to keep.
    #[must_use]
    pub fn to_value(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// What is kept of a watcher that no file names.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Added {
    /// As given.
    pub name: String,
    /// Options as in a file, `cmd` and `args` among them.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
    /// Variables in place of those of the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<BTreeMap<String, String>>,
}

/// Name of the value for the watcher whose lower-case name is `key`.
#[must_use]
pub fn watcher_value(namespace: &str, key: &str) -> String {
    format!("{namespace}.manager.watcher.{key}")
}

/// The watcher's lower-case name in what [`watcher_value`] answers.
#[must_use]
pub fn key_of_watcher_value<'a>(namespace: &str, value: &'a str) -> Option<&'a str> {
    let rest = value.strip_prefix(namespace)?;
    rest.strip_prefix(".manager.watcher.")
}

/// Name of the value that describes the watcher `key` if no file does.
#[must_use]
pub fn added_value(namespace: &str, key: &str) -> String {
    format!("{namespace}.manager.added.{key}")
}

/// Name of the value for how the latest workers of the watcher `key` ended.
#[must_use]
pub fn ends_value(namespace: &str, key: &str) -> String {
    format!("{namespace}.manager.ends.{key}")
}

/// Name of the value for a change of the configuration under way.
#[must_use]
pub fn change_value(namespace: &str) -> String {
    format!("{namespace}.manager.change")
}

/// Name of the value for what ended workers left behind.
#[must_use]
pub fn left_value(namespace: &str) -> String {
    format!("{namespace}.manager.left")
}

/// Name of the value for the file mode mask of workers whose watcher has none, in octal: that of
/// whoever started the first manager of this namespace, for every successor until `down`.
#[must_use]
pub fn umask_value(namespace: &str) -> String {
    format!("{namespace}.manager.umask")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_state_survives_and_a_foreign_one_is_nothing() {
        let mut kept = Kept {
            stopped: Some(true),
            generation: 3,
            roll: Some(KeptRoll {
                to: 3,
                sequential: false,
                takes_back: true,
                before: Some(KeptBefore {
                    generation: 2,
                    ..KeptBefore::default()
                }),
            }),
            ..Kept::default()
        };
        kept.finished.insert(7);
        kept.stopping.insert(9, 12);
        kept.backoff.insert(1, KeptBackoff::default());
        assert_eq!(Kept::parse(kept.to_value().as_bytes()), kept);
        assert_eq!(
            Kept::parse(br#"{"stopped":true,"of":"the future"}"#).stopped,
            Some(true)
        );
        assert_eq!(Kept::parse(b"not json"), Kept::default());
        assert_eq!(Kept::default().to_value(), "{}");
    }

    /// What another version has left; see `tests/fixtures`.
    macro_rules! fixture {
        ($name:literal) => {
            include_bytes!(concat!("../../tests/fixtures/manager/", $name, ".json"))
        };
    }

    #[test]
    fn what_the_first_version_kept_of_a_watcher_keeps_its_meaning() {
        let kept = Kept::parse(fixture!("watcher-0.1.0-first"));
        assert_eq!((kept.stopped, kept.restarting), (Some(false), true));
        assert_eq!(
            (kept.finished, kept.ended, kept.ready),
            ([3].into(), [4, 5].into(), [8].into())
        );
        let backoff = kept.backoff[&1];
        assert_eq!(
            (backoff.record.failures(), backoff.until_ms),
            (4, 1_795_389_357_000)
        );
        assert_eq!(
            (kept.flapping.pauses, kept.flapping.until_ms),
            (2, 1_795_389_358_000)
        );
        assert_eq!(kept.count, Some(KeptCount { file: 2, now: 5 }));
        assert_eq!((kept.generation, kept.generations), (6, 7));
        let roll = kept.roll.unwrap();
        assert_eq!((roll.to, roll.sequential, roll.before), (7, true, None));
        assert_eq!(kept.stopping, [(9, 1_795_389_359_000)].into());
        assert_eq!(kept.set["graceful_timeout"], "7");
        assert_eq!(kept.env.unwrap()["A"], "1");
        let removing = kept.removing.unwrap();
        assert_eq!((removing.name.as_str(), removing.stop_signal), ("Web", 15));
        assert!(removing.stop_children && removing.graceful_timeout == "2.5");
        assert!(!kept.gave_up && kept.message.is_none() && kept.failures.is_empty());
    }

    #[test]
    fn what_this_version_keeps_keeps_its_meaning() {
        let kept = Kept::parse(fixture!("watcher-0.1.0"));
        let ends = [1_795_389_350_000, 1_795_389_351_000];
        assert_eq!(kept.flapping.ends_ms, ends);
        assert!(kept.gave_up && kept.came_up && kept.failures == [(8, 2)].into());
        assert!(kept.message.as_ref().unwrap().starts_with("given up"));
        let before = kept.roll.clone().unwrap().before.unwrap();
        assert_eq!((before.generation, before.set.len()), (6, 1));
        assert_eq!(before.env.unwrap()["A"], "1");
        assert_eq!(
            kept.to_value().as_bytes(),
            fixture!("watcher-0.1.0").trim_ascii_end(),
            "what is written now is another form: add a fixture of it, and keep this one"
        );

        let signals = Kept::parse(fixture!("watcher-0.1.0-signals"));
        assert!(signals.signals == [(9, 3)].into() && kept.signals.is_empty());
        assert_eq!(
            signals.to_value().as_bytes(),
            fixture!("watcher-0.1.0-signals").trim_ascii_end()
        );

        let removed = Kept::parse(fixture!("watcher-0.1.0-streams"));
        let streams = &removed.removing.as_ref().unwrap().streams;
        assert_eq!(streams["stdout_stream.filename"], "/l/web");
        assert_eq!(
            removed.to_value().as_bytes(),
            fixture!("watcher-0.1.0-streams").trim_ascii_end()
        );

        let back = Kept::parse(fixture!("watcher-0.1.0-takes-back"));
        assert!(back.roll.as_ref().unwrap().takes_back && !kept.roll.as_ref().unwrap().takes_back);
        assert_eq!(
            back.to_value().as_bytes(),
            fixture!("watcher-0.1.0-takes-back").trim_ascii_end()
        );

        let demanded = Kept::parse(fixture!("watcher-0.1.0-demanded"));
        assert!(demanded.demanded && !kept.demanded);
        assert_eq!(
            demanded.to_value().as_bytes(),
            fixture!("watcher-0.1.0-demanded").trim_ascii_end()
        );

        let added: Added = parse("added", fixture!("added-0.1.0")).unwrap();
        assert_eq!((added.name.as_str(), added.options.len()), ("Extra", 2));
        let left: KeptLeft = parse("left", fixture!("left-0.1.0")).unwrap();
        let session = &left.sessions[&4711];
        assert_eq!(
            (session.members.as_slice(), session.escaped.as_slice()),
            ([(4712, 99)].as_slice(), [(4713, 100)].as_slice())
        );
        let note: crate::note::Note = parse("note", fixture!("note-0.1.0")).unwrap();
        assert_eq!(note.generation, 3);
        assert_eq!(note.settings, Some(14_695_981_039_346_656_037));

        let change: KeptChange = parse("change", fixture!("change-0.1.0")).unwrap();
        assert!(change.undoing.is_some());
        let document = change.before.to_document("old.ini".as_ref());
        assert_eq!(KeptDocument::of(&document), change.before);
        let value = |section: &str, key: &str| {
            let entry = document.get(section, key);
            entry.map(|entry| entry.value.clone())
        };
        assert_eq!(value("watcher:web", "args").as_deref(), Some("a\nb"));
        assert_eq!(value("watcher:web", "priority").as_deref(), Some("3"));
        assert!(change.added.is_empty() && change.rolls.is_empty());
        let change: KeptChange = parse("change", fixture!("change-0.1.0-rolls")).unwrap();
        assert!(change.added.contains("cron") && change.rolls["web"] == 3);
        assert_eq!(
            serde_json::to_string(&change).unwrap().as_bytes(),
            fixture!("change-0.1.0-rolls").trim_ascii_end()
        );
    }

    #[test]
    fn what_a_later_version_adds_is_passed_over() {
        let kept = Kept::parse(fixture!("watcher-future"));
        assert_eq!(kept.stopped, Some(true));
        assert_eq!(kept.backoff[&1].record.failures(), 4);
        assert_eq!(kept.flapping.pauses, 1);
        let roll = kept.roll.unwrap();
        assert_eq!((roll.to, roll.before.unwrap().generation), (7, 6));
        assert_eq!(kept.removing.unwrap().name, "Web");
    }
}
