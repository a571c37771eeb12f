//! Watchers that come, change and go by request: `add`, `rm`, `set`.
//!
//! Owns what such a request does to the configuration and what of it is kept, so that a successor
//! knows the same watchers.
//! Leaves to others: reading the options (`config::change`), what a difference means
//! (`config::diff`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::sync::oneshot;

use crate::config::change::{Given, new_watcher, with_options};
use crate::config::diff::{Apply, diff_watcher};
use crate::config::{Config, WatcherConfig};
use crate::control::events::EventKind;
use crate::control::message::{Add, Errno, OptionValues, Reply, Request, RequestError};
use crate::state::{Added, Kept, KeptRemoval};
use crate::supervisor::kernel::with_what_was_set;
use crate::supervisor::tickets::{Body, Goal, Ticket, done, refuse};
use crate::supervisor::{Supervisor, WatcherId};

impl Supervisor {
    pub(super) fn add(&mut self, request: Request, reply: oneshot::Sender<Reply>, add: Add) {
        if let Err(error) = self.may_act() {
            return refuse(request, reply, &error);
        }
        if self.keys.contains_key(&add.name.to_lowercase()) {
            let reason = format!("watcher {} already exists", add.name);
            return refuse(request, reply, &RequestError::new(Errno::Command, reason));
        }
        let added = Added {
            name: add.name,
            options: add.options.options,
            env: add.options.env,
        };
        let config = match added_watcher(&self.config, &added) {
            Ok(config) => config,
            Err(reason) => {
                return refuse(request, reply, &RequestError::new(Errno::Message, reason));
            }
        };
        self.keep_added(&config.key, &added);
        let kept = Kept {
            stopped: (!add.start).then_some(true),
            ..Kept::default()
        };
        let id = self.take_in(config, kept);
        self.publish(id, &EventKind::Add);
        if !add.start {
            return done(request, reply);
        }
        for needed in self.with_dependencies(&[id]) {
            if let Some(watcher) = self.watchers.get_mut(&needed) {
                watcher.start();
            }
        }
        if request.waiting {
            self.open_requests.wait(Ticket {
                request,
                reply,
                watchers: vec![id],
                goal: Goal::Up,
                open: 0,
                body: Body::Started,
            });
        } else {
            done(request, reply);
        }
    }

    pub(super) fn remove(
        &mut self,
        request: Request,
        reply: oneshot::Sender<Reply>,
        name: &str,
        nostop: bool,
    ) {
        let id = match self.chosen(name) {
            Ok(id) => id,
            Err(error) => return refuse(request, reply, &error),
        };
        let mut config = self.config.as_ref().clone();
        let key = name.to_lowercase();
        let needed: Vec<&str> = config
            .watchers
            .iter()
            .filter(|other| other.key != key && other.depends_on.contains(&key))
            .map(|other| other.name.as_str())
            .collect();
        if !needed.is_empty() {
            let reason = format!("{} depends on it; remove that first", needed.join(", "));
            return refuse(request, reply, &RequestError::new(Errno::Command, reason));
        }
        config.watchers.retain(|watcher| watcher.key != key);
        self.config = Arc::new(config);
        if nostop {
            tracing::warn!(
                watcher = name,
                "forgotten on request; its workers run on, managed by nobody"
            );
            self.forget(id);
            return done(request, reply);
        }
        if let Some(watcher) = self.watchers.get_mut(&id) {
            watcher.remove();
        }
        self.wait(request, reply, vec![id], Goal::Gone);
    }

    pub(super) fn set(
        &mut self,
        request: Request,
        reply: oneshot::Sender<Reply>,
        name: &str,
        values: OptionValues,
    ) {
        let id = match self.chosen(name) {
            Ok(id) => id,
            Err(error) => return refuse(request, reply, &error),
        };
        let Some(watcher) = self.watchers.get_mut(&id) else {
            return;
        };
        let mut set: BTreeMap<String, String> = watcher.kept().set.clone();
        set.extend(values.options.clone());
        let env = values.env.clone().or_else(|| watcher.kept().env.clone());
        let resolved = resolve(&self.config, name, &set, env.as_ref());
        // The number of workers has a place of its own: `incr` and `decr` change it too.
        let count = match &resolved {
            Ok(config) => set.remove("numprocesses").map(|_| config.numprocesses),
            Err(_) => None,
        };
        let resolved = resolved.and_then(|_| resolve(&self.config, name, &set, env.as_ref()));
        // What is set changes nothing about the release, even if that was deleted.
        let release = watcher.config().release();
        let resolved = resolved.map(|mut config| {
            if let Some(release) = &release {
                config.pin(release);
            }
            config
        });
        let config = match resolved {
            Ok(config) => Arc::new(config),
            Err(reason) => {
                return refuse(request, reply, &RequestError::new(Errno::Message, reason));
            }
        };
        let apply = diff_watcher(watcher.config(), &config).map(|change| change.apply);
        tracing::info!(watcher = config.name, options = ?values.options.keys(), ?apply, "set at run time");
        let goal = match apply {
            Some(Apply::Roll) if watcher.is_wanted() && watcher.reload(config.clone(), false) => {
                Goal::Reloaded
            }
            Some(Apply::Restart) if watcher.is_wanted() => {
                watcher.configure(config);
                watcher.restart();
                Goal::Up
            }
            Some(_) => {
                watcher.configure(config);
                Goal::Settled
            }
            None => Goal::Settled,
        };
        watcher.set_options(set, env);
        if let Some(count) = count {
            watcher.set_count(count);
        }
        let wanted = watcher.is_wanted();
        self.output.outdate();
        for option in values.options.into_keys() {
            self.publish(id, &EventKind::Updated { option });
        }
        if wanted {
            self.wait(request, reply, vec![id], goal);
        } else {
            done(request, reply);
        }
    }

    /// Takes a watcher in that the configuration did not have.
    fn take_in(&mut self, config: WatcherConfig, kept: Kept) -> WatcherId {
        let mut all = self.config.as_ref().clone();
        all.watchers.push(config.clone());
        self.config = Arc::new(all);
        let (config, kept) = with_what_was_set(&self.config, &Arc::new(config), kept);
        let id = self.insert(config, kept);
        self.start_order.push(id);
        self.output.outdate();
        id
    }

    /// Takes in what a predecessor had beyond the file: watchers that were added, and those that
    /// were on their way out.
    pub(super) fn take_over(
        &mut self,
        added: BTreeMap<String, Added>,
        mut kept: BTreeMap<String, Kept>,
    ) {
        for (key, added) in added {
            if self.keys.contains_key(&key) {
                continue;
            }
            match added_watcher(&self.config, &added) {
                Ok(config) => {
                    let kept = kept.remove(&key).unwrap_or_default();
                    if kept.removing.is_some() {
                        self.insert(Arc::new(config), kept);
                    } else {
                        self.take_in(config, kept);
                    }
                }
                Err(reason) => {
                    tracing::error!(
                        watcher = key,
                        reason,
                        "an added watcher cannot be taken over"
                    );
                }
            }
        }
        for (key, kept) in kept {
            let Some(removal) = kept.removing.clone() else {
                continue;
            };
            if self.keys.contains_key(&key) {
                continue;
            }
            match leaving_watcher(&self.config, &removal) {
                Ok(config) => {
                    self.insert(Arc::new(config), kept);
                }
                Err(reason) => {
                    tracing::error!(watcher = key, reason, "a removed watcher's workers stay");
                }
            }
        }
    }

    /// Forgets those that were to go and are stopped.
    pub(super) fn drop_removed(&mut self, touched: &BTreeSet<WatcherId>) {
        for id in touched {
            let watcher = self.watchers.get(id);
            if watcher.is_some_and(|watcher| watcher.is_removed() && watcher.is_stopped()) {
                self.forget(*id);
            }
        }
    }

    fn forget(&mut self, id: WatcherId) {
        self.publish(id, &EventKind::Remove);
        let Some(watcher) = self.watchers.remove(&id) else {
            return;
        };
        let key = watcher.config().key.clone();
        if self.keys.get(&key) == Some(&id) {
            self.keys.remove(&key);
        }
        self.outbox.forget_watcher(id);
        self.signals.forget(id);
        self.start_order.forget(id);
        self.note_gone(&watcher);
        let ended = watcher.kept().ended.clone();
        if watcher.is_removed() && !ended.is_empty() {
            // A successor has to know where what they wrote last goes.
            self.undrained.note(watcher.config(), ended);
        } else {
            self.forget_kept(&key);
        }
        self.output.outdate();
    }

    /// Tells the log thread who there is.
    pub(super) fn update_logs(&mut self) {
        if self.output.is_outdated() {
            let logged = self.logged();
            self.output.update(logged);
        }
    }
}

fn resolve(
    base: &Config,
    name: &str,
    options: &BTreeMap<String, String>,
    env: Option<&BTreeMap<String, String>>,
) -> Result<WatcherConfig, String> {
    with_options(base, name, Given { options, env }).map_err(|errors| errors.to_string())
}

fn added_watcher(base: &Config, added: &Added) -> Result<WatcherConfig, String> {
    let mut options = added.options.clone();
    let cmd = options.remove("cmd").unwrap_or_default();
    let args = options.remove("args");
    let given = Given {
        options: &options,
        env: added.env.as_ref(),
    };
    new_watcher(base, &added.name, &cmd, args.as_deref(), given)
        .map_err(|errors| errors.to_string())
}

/// Enough of a watcher to stop what it had.
fn leaving_watcher(base: &Config, removal: &KeptRemoval) -> Result<WatcherConfig, String> {
    let mut options = removal.streams.clone();
    options.extend([
        ("stop_signal".to_owned(), removal.stop_signal.to_string()),
        (
            "stop_children".to_owned(),
            removal.stop_children.to_string(),
        ),
        (
            "graceful_timeout".to_owned(),
            removal.graceful_timeout.clone(),
        ),
    ]);
    let given = Given {
        options: &options,
        env: None,
    };
    new_watcher(base, &removal.name, "true", None, given).map_err(|errors| errors.to_string())
}
