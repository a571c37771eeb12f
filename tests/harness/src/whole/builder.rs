//! How a whole installation is started: what is special about it, and the watchers it has in any
//! case.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::PathBuf;

use super::{Lines, Listener, Visitor, Whole};
use crate::{Collector, KernelBuilder};

/// The watchers every installation has: `web` serves and is reloaded, `steady` is never touched,
/// and its workers share a file.
const WATCHERS: &str = "\
[socket:web]
host = 127.0.0.1
port = 0
blocking = no

[watcher:web]
cmd = WORKER web listen=$(circus.sockets.web) WEB_WORDS
copy_env = true
use_sockets = true
numprocesses = 2
ready = notify
stdout_stream.filename = DIR/logs/web.out
stdout_stream.max_bytes = 100000
stdout_stream.backup_count = 9000
stderr_stream.filename = DIR/logs/web.err
backoff_max = 0.3
backoff_reset = 1

[watcher:steady]
cmd = WORKER steady
copy_env = true
ready = notify
numprocesses = 2
stdout_stream.filename = DIR/logs/steady.log
stdout_stream.max_bytes = 150000
stdout_stream.backup_count = 9000
stdout_stream.time_format = %H:%M:%S
stderr_stream.filename = DIR/logs/steady.log
";

/// How to start one.
#[derive(Debug, Default)]
pub struct WholeBuilder {
    kernel: KernelBuilder,
    ini: String,
    web_words: String,
    without_watchers: bool,
    environment: Vec<(String, String)>,
    manager_wrapper: Vec<String>,
    logs: Vec<PathBuf>,
    side: Option<String>,
}

impl WholeBuilder {
    /// A kernel with something special about it.
    #[must_use]
    pub fn kernel(mut self, kernel: KernelBuilder) -> Self {
        self.kernel = kernel;
        self
    }

    /// More sections of the INI file; `DIR` and `WORKER` are replaced.
    #[must_use]
    pub fn ini(mut self, ini: &str) -> Self {
        self.ini.push_str(ini);
        self
    }

    /// One more word of `web`'s command, which ignores options that it does not know.
    #[must_use]
    pub fn web_word(mut self, word: &str) -> Self {
        self.web_words.push(' ');
        self.web_words.push_str(word);
        self
    }

    /// Only the sections given: no `web`, no `steady`, no visitor.
    #[must_use]
    pub fn without_watchers(mut self) -> Self {
        self.without_watchers = true;
        self
    }

    /// A variable of kernel and manager.
    #[must_use]
    pub fn environment(mut self, key: &str, value: &str) -> Self {
        self.environment.push((key.to_owned(), value.to_owned()));
        self
    }

    /// A program that starts the manager, in the same process.
    #[must_use]
    pub fn manager_wrapper(mut self, words: &[&str]) -> Self {
        self.manager_wrapper = words.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// One more directory of log files that are checked.
    #[must_use]
    pub fn logs(mut self, directory: PathBuf) -> Self {
        self.logs.push(directory);
        self
    }

    /// A client that makes processes itself, whose names match this pattern, and consumes their
    /// output.
    #[must_use]
    pub fn side(mut self, pattern: &str) -> Self {
        self.side = Some(pattern.to_owned());
        self
    }

    /// Starts everything, and waits until it is there.
    ///
    /// # Panics
    /// When it does not come up.
    #[track_caller]
    pub fn start(mut self) -> Whole {
        for (key, value) in &self.environment {
            self.kernel = self.kernel.environment(key, value);
        }
        let kernel = self.kernel.start();
        for name in ["logs", "lives", "orders", "slots"] {
            fs::create_dir(kernel.directory().join(name)).expect("the scratch directory is empty");
        }
        let watchers = if self.without_watchers { "" } else { WATCHERS };
        let watchers = watchers.replace(" WEB_WORDS", &self.web_words);
        let mut logs = self.logs;
        logs.push(kernel.directory().join("logs"));
        let side = self
            .side
            .map(|pattern| Collector::new(&kernel.socket_path(), &[&pattern]));
        let mut whole = Whole {
            manager_wrapper: self.manager_wrapper,
            logs,
            side,
            fed: HashMap::new(),
            incarnation: 0,
            signalled: None,
            ini: format!("{watchers}\n{}", self.ini),
            environment: self.environment,
            slow_disk: None,
            manager: None,
            pids: BTreeMap::new(),
            lines: Lines::default(),
            deleted: Vec::new(),
            told: BTreeSet::new(),
            manager_disturbed: false,
            unknown_ends: false,
            descriptors: BTreeMap::new(),
            visits: 0,
            listener: Listener::start(&kernel.runtime_dir().join("circus.manager.sock")),
            visitor: None,
            kernel,
        };
        let ini = whole.ini.clone();
        whole.write_ini(&ini);
        if let Err(why) = whole.restore() {
            panic!("it does not come up: {why}");
        }
        if !self.without_watchers {
            whole.visitor = Some(Visitor::start(whole.port("web")));
        }
        whole
    }
}
