//! `papactl logs`: the end of what watchers wrote, in files and in the kernel, and with `-f` what
//! is added.
//!
//! Owns the order of things: who is meant, what was there, what comes. Reading files is
//! `papa_logs::reader`'s, reading the kernel `live`'s, showing `screen`'s. Nothing here changes a
//! log: files are only read, and the kernel is asked as a follower.
//! Source: manager/docs/papactl.md.

pub(super) mod ended;
pub(super) mod screen;
pub(crate) mod since;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use chrono::{DateTime, Local, Utc};
use papa_logs::reader::{Shown, Stamps, Tail, Wanted, merged};
use papa_system::printable::printable;

use crate::cli::Common;
use crate::cli::args::{Lines, LogsArgs};
use crate::commands::{CommandError, connect, kernel, namespace, note};
use papa_config::{self as config, Surroundings};
use papa_control::client::ManagerError;
use papa_control::live::{self, Line, News, QUEUED_NEWS};
use papa_control::message::{Command, LogsReply, Request, RequestError, Selection, log_files};
use papa_control::sources::{FileSource, LiveSource, Sources};

use screen::{Printer, Style};

/// How many lines are shown unless told otherwise.
const DEFAULT_LINES: usize = 10;
/// How often files are looked at when following.
const POLL: Duration = Duration::from_millis(100);
/// How often the manager is asked for watchers that are new.
const ASK_AGAIN: Duration = Duration::from_secs(2);
/// Longest wait for what the kernel has kept; it does nothing slow.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most bytes of kept lines put in order before they are shown; the oldest go first.
const MAX_KEPT_BYTES: usize = 32 * 1024 * 1024;

/// Runs the verb.
pub(super) fn run(common: &Common, args: &LogsArgs) -> Result<(), CommandError> {
    let mut reply = known_files(common)?;
    let known: Vec<String> = reply.logs.iter().map(|logs| logs.name.clone()).collect();
    let (selection, wids) = named(&known, &args.names)?;
    let meant = selection.matcher();
    reply
        .logs
        .retain(|logs| meant.matches(&logs.name.to_lowercase()));
    let mut sources = Sources::of(&reply);
    sources.only(&wids);
    if sources.is_empty() {
        return Err(CommandError::Failed(
            "nothing to show: the output of these watchers goes nowhere".to_owned(),
        ));
    }
    let wanted = Wanted {
        lines: match (args.lines, args.since) {
            (Some(Lines::Last(lines)), _) => Some(lines),
            (Some(Lines::All), _) | (None, Some(_)) => None,
            (None, None) => Some(DEFAULT_LINES),
        },
        since: args.since,
    };
    let (sender, news) = sync_channel(QUEUED_NEWS);
    let mut view = View {
        common,
        wanted,
        follow: args.follow,
        style: Style::new(
            common.json,
            sources.are_several().then(|| sources.label_width()),
        ),
        label_width: sources.label_width(),
        files: Vec::new(),
        live: BTreeMap::new(),
        troubles: std::mem::take(&mut reply.troubles),
        sender,
    };
    for logs in reply.logs.iter().filter(|logs| ended::of_no_file(logs)) {
        let wids = wids.get(&logs.name.to_lowercase());
        screen::write_out(&ended::shown(logs, wids, wanted, view.style))?;
    }
    view.add_live(sources.live)?;
    // One that cannot be read hides no other.
    let count = sources.files.len() + view.live.len();
    let mut pile = (sources.files.len() > 1).then(Pile::default);
    for file in sources.files {
        match view.add_file(file, pile.as_mut()) {
            Err(CommandError::Failed(reason)) if count > 1 => note(&format!("papactl: {reason}")),
            result => result?,
        }
    }
    if let Some(pile) = pile {
        view.show_pile(&pile)?;
    }
    let only_live = view.files.is_empty();
    view.show_kept(&news, only_live)?;
    if !screen::has_shown() && !common.json {
        note(if args.since.is_some() {
            "papactl: nothing was written since then"
        } else {
            "papactl: nothing is there to show: these watchers have written nothing, or nothing is kept of it"
        });
    }
    if !args.follow {
        return Ok(());
    }
    let fresh = ask_again(common, reply, move |logs| meant.matches(logs));
    view.follow(&news, &fresh)
}

/// What is to be shown of files, before it is put in order.
#[derive(Debug, Default)]
struct Pile {
    /// In the order of the view's files.
    files: Vec<Shown>,
    bytes: usize,
    /// There was more than is put in order: it is shown file by file.
    is_full: bool,
}

/// What is on the screen.
#[derive(Debug)]
struct View<'a> {
    common: &'a Common,
    wanted: Wanted,
    follow: bool,
    style: Style,
    /// Width of labels where there are any.
    label_width: usize,
    files: Vec<(Tail, Printer)>,
    live: BTreeMap<String, LiveSource>,
    /// What is wrong with files, by their paths.
    troubles: BTreeMap<String, String>,
    sender: SyncSender<News>,
}

impl View<'_> {
    /// Shows what is meant of a file and remembers it for following.
    fn add_file(
        &mut self,
        source: FileSource,
        mut pile: Option<&mut Pile>,
    ) -> Result<(), CommandError> {
        let path = source.path.clone();
        let shown = path.display();
        let stamps = Stamps::of(source.form.as_ref());
        let of_one_worker = source.of_one_worker;
        let mut printer = Printer::new(source, self.style);
        let mut printed = Ok(());
        let mut waiting = Vec::new();
        let opened = Tail::open(path.clone(), &stamps, self.wanted, |bytes| {
            if let Some(pile) = pile.as_deref_mut().filter(|pile| !pile.is_full) {
                waiting.extend_from_slice(bytes);
                pile.bytes += bytes.len();
                pile.is_full = pile.bytes > MAX_KEPT_BYTES;
                if !pile.is_full {
                    return Ok(());
                }
            }
            let late = std::mem::take(&mut waiting);
            let bytes = if late.is_empty() { bytes } else { &late };
            printed = printer.take(bytes);
            // The failure to print must not be taken for one to read.
            printed
                .as_ref()
                .copied()
                .map_err(|error| error.kind().into())
        });
        printed?;
        if let Some(trouble) = self.troubles.get(&path.display().to_string()) {
            note(&format!(
                "papactl: {}; what is shown of it was written before that",
                printable(trouble)
            ));
        }
        let (tail, begun) =
            opened.map_err(|error| CommandError::Failed(format!("log {shown}: {error}")))?;
        if of_one_worker {
            note(&format!(
                "papactl: log {shown}: all workers write to it, so the lines of all are shown"
            ));
        }
        if begun.absent {
            note(&format!("papactl: log {shown} does not exist yet"));
        }
        if begun.unstamped {
            note(&format!(
                "papactl: log {shown}: its lines do not say when they were written (time_format, class json), so those of \
                 every file written to since then are shown"
            ));
        }
        if begun.more {
            note(&format!(
                "papactl: log {shown}: there are more, older files than are looked at"
            ));
        }
        for failure in begun.failures {
            note(&format!("papactl: log {}", printable(&failure)));
        }
        if let Some(pile) = pile {
            pile.files.push(Shown {
                bytes: waiting,
                stamps,
            });
        } else if !self.follow {
            printer.finish()?;
        }
        self.files.push((tail, printer));
        Ok(())
    }

    /// Shows what is meant of several files in the order in which it was written.
    fn show_pile(&mut self, pile: &Pile) -> io::Result<()> {
        if pile.is_full {
            note(&format!(
                "papactl: this is more than {} MiB, so files are shown one after the other",
                MAX_KEPT_BYTES / (1024 * 1024)
            ));
        }
        for (number, line) in merged(&pile.files, Utc::now()) {
            if let Some((_, printer)) = self.files.get_mut(number) {
                printer.take(line)?;
            }
        }
        if !self.follow {
            for (_, printer) in &mut self.files {
                printer.finish()?;
            }
        }
        Ok(())
    }

    /// Starts looking at output that is in no file.
    fn add_live(&mut self, watchers: BTreeMap<String, LiveSource>) -> Result<(), CommandError> {
        if watchers.is_empty() {
            return Ok(());
        }
        self.live.extend(watchers.clone());
        let wanted = live::Wanted {
            addresses: kernel::verbs::places(self.common)?,
            namespace: namespace(self.common)?,
            watchers,
            follow: self.follow,
        };
        live::start(wanted, self.sender.clone());
        Ok(())
    }

    /// Shows what the kernel has kept.
    fn show_kept(&mut self, news: &Receiver<News>, only_live: bool) -> Result<(), CommandError> {
        if self.live.is_empty() {
            return Ok(());
        }
        let deadline = Instant::now() + PATIENCE;
        let mut kept = Kept::new(self.wanted);
        let mut coming = Vec::new();
        loop {
            let patience = deadline.saturating_duration_since(Instant::now());
            match news.recv_timeout(patience) {
                Ok(News::Lines(lines)) => {
                    for line in lines {
                        if line.kept {
                            kept.add(line);
                        } else {
                            coming.push(line);
                        }
                    }
                    // Somebody writes faster than the rest is told.
                    if coming.iter().map(|line| line.text.len()).sum::<usize>() > MAX_KEPT_BYTES {
                        break;
                    }
                }
                Ok(News::Failed(error)) => {
                    let message = format!("output that is in no file cannot be shown: {error}");
                    if only_live {
                        return Err(CommandError::Failed(message));
                    }
                    note(&format!("papactl: {message}"));
                    break;
                }
                Ok(News::Gap(..) | News::Ended(_)) => {}
                Ok(News::Caught) | Err(_) => break,
            }
        }
        self.workers_seen(kept.workers());
        self.show(&kept.lines())?;
        self.show(&coming)?;
        Ok(())
    }

    /// Several workers of one watcher are told apart by labels.
    fn workers_seen(&mut self, count: usize) {
        if count > 1 {
            self.label();
        }
    }

    fn label(&mut self) {
        self.style.label_width = Some(self.label_width);
        for (_, printer) in &mut self.files {
            printer.set_style(self.style);
        }
    }

    fn show(&self, lines: &[Line]) -> io::Result<()> {
        let mut out = Vec::new();
        for line in lines {
            let name = self.live.get(&line.watcher);
            let name = name.map_or(line.watcher.as_str(), |live| live.name.as_str());
            self.style.live(name, line, &mut out);
        }
        screen::write_out(&out)
    }

    /// Prints what is added, until interrupted or nobody reads any more.
    fn follow(
        &mut self,
        news: &Receiver<News>,
        fresh: &Receiver<LogsReply>,
    ) -> Result<(), CommandError> {
        loop {
            for (tail, printer) in &mut self.files {
                tail.poll(|bytes| printer.take(bytes))?;
            }
            screen::check_reader()?;
            while let Ok(reply) = fresh.try_recv() {
                self.add_new(&reply)?;
            }
            let next_look = Instant::now() + POLL;
            loop {
                let patience = next_look.saturating_duration_since(Instant::now());
                match news.recv_timeout(patience) {
                    Ok(News::Lines(lines)) => self.show(&lines)?,
                    Ok(News::Caught | News::Ended(_)) => {}
                    Ok(News::Gap(bytes, name)) => note(&format!(
                        "papactl: {bytes} bytes of {} went by unseen",
                        printable(&name)
                    )),
                    Ok(News::Failed(error)) => {
                        let message = format!("output that is in no file cannot be shown: {error}");
                        if self.files.is_empty() {
                            return Err(CommandError::Failed(message));
                        }
                        note(&format!("papactl: {message}"));
                    }
                    Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
                }
                if Instant::now() >= next_look {
                    break;
                }
            }
        }
    }

    /// Adds watchers and files that were not there before.
    fn add_new(&mut self, reply: &LogsReply) -> Result<(), CommandError> {
        let mut sources = Sources::of(reply);
        sources.live.retain(|key, _| !self.live.contains_key(key));
        sources.files.retain(|file| {
            let known = |(_, printer): &(Tail, Printer)| printer.source().path == file.path;
            !self.files.iter().any(known)
        });
        if !sources.is_empty() {
            self.label_width = self.label_width.max(sources.label_width());
            self.label();
        }
        self.add_live(sources.live)?;
        for file in sources.files {
            self.add_file(file, None)?;
        }
        Ok(())
    }
}

/// Which of the watchers `known` are meant by `words`, and of which only these workers.
fn named(
    known: &[String],
    words: &[String],
) -> Result<(Selection, BTreeMap<String, BTreeSet<u32>>), CommandError> {
    let is_known = |name: &str| known.iter().any(|known| known.eq_ignore_ascii_case(name));
    let mut names = Vec::new();
    let mut wids: BTreeMap<String, BTreeSet<u32>> = BTreeMap::new();
    let mut whole = BTreeSet::new();
    for word in words {
        let of_worker = word.rsplit_once(':').and_then(|(name, wid)| {
            let wid = wid.parse().ok()?;
            is_known(name).then_some((name, wid))
        });
        match of_worker {
            _ if is_known(word) => {
                whole.insert(word.to_lowercase());
                names.push(word.clone());
            }
            _ if word.eq_ignore_ascii_case("all") => {
                return Ok((Selection::all(), BTreeMap::new()));
            }
            Some((name, wid)) => {
                wids.entry(name.to_lowercase()).or_default().insert(wid);
                names.push(name.to_owned());
            }
            None => {
                let pattern = word.strip_suffix(":*").unwrap_or(word);
                let matcher = Selection::named(pattern).matcher();
                if !known
                    .iter()
                    .any(|name| matcher.matches(&name.to_lowercase()))
                {
                    return Err(ManagerError::from(RequestError::unknown_watcher(word)).into());
                }
                names.push(pattern.to_owned());
            }
        }
    }
    wids.retain(|name, _| !whole.contains(name));
    let mut names = names.into_iter();
    let selection = Selection {
        name: names.next(),
        names: names.collect(),
        ..Selection::default()
    };
    Ok((selection, wids))
}

/// Asks the manager; without one, the file named by `--config` tells as well.
fn known_files(common: &Common) -> Result<LogsReply, CommandError> {
    let asked = connect(common).and_then(|mut client| {
        let reply = client.ask(&question(), common.timeout());
        reply.map_err(CommandError::from)
    });
    match asked {
        Ok(reply) => Ok(reply),
        Err(CommandError::Manager(error @ ManagerError::NotRunning { .. })) => match &common.config
        {
            Some(file) => {
                let config = config::load(file, &Surroundings::current()?)?;
                Ok(log_files(config.watchers.iter()))
            }
            None => Err(CommandError::Failed(format!(
                "{error}, or name the file with --config FILE"
            ))),
        },
        Err(error) => Err(error),
    }
}

fn question() -> Request {
    Request::waiting(Command::Logs { name: None })
}

/// Asks the manager now and then, aside, for what is not in `known`; it may be away for a while.
fn ask_again(
    common: &Common,
    known: LogsReply,
    meant: impl Fn(&str) -> bool + Send + 'static,
) -> Receiver<LogsReply> {
    let (sender, receiver) = sync_channel(1);
    let common = common.clone();
    let mut known = known;
    let asking = move || {
        loop {
            thread::sleep(ASK_AGAIN);
            let Ok(mut client) = connect(&common) else {
                continue;
            };
            let Ok(mut reply) = client.ask::<LogsReply>(&question(), common.timeout()) else {
                continue;
            };
            reply.logs.retain(|logs| meant(&logs.name.to_lowercase()));
            if reply != known {
                known = reply.clone();
                if sender.send(reply).is_err() {
                    return;
                }
            }
        }
    };
    if let Err(error) = thread::Builder::new()
        .name("asking".to_owned())
        .spawn(asking)
    {
        note(&format!(
            "papactl: watchers that are added will not be seen: {error}"
        ));
    }
    receiver
}

/// Lines the kernel had kept, in the order they were captured.
#[derive(Debug)]
struct Kept {
    wanted: Wanted,
    since: Option<DateTime<Utc>>,
    /// By watcher, then by moment and order of arrival.
    lines: BTreeMap<String, BTreeMap<(i64, u64), Line>>,
    arrived: u64,
    bytes: usize,
}

impl Kept {
    fn new(wanted: Wanted) -> Self {
        Self {
            wanted,
            since: wanted.since,
            lines: BTreeMap::new(),
            arrived: 0,
            bytes: 0,
        }
    }

    fn add(&mut self, line: Line) {
        let too_old = self
            .since
            .is_some_and(|since| line.stamp_us < since.timestamp_micros());
        if too_old {
            return;
        }
        self.arrived += 1;
        self.bytes += line.text.len();
        let lines = self.lines.entry(line.watcher.clone()).or_default();
        lines.insert((line.stamp_us, self.arrived), line);
        while self.wanted.lines.is_some_and(|most| lines.len() > most)
            || (self.bytes > MAX_KEPT_BYTES && !lines.is_empty())
        {
            if let Some((_, gone)) = lines.pop_first() {
                self.bytes -= gone.text.len();
            }
        }
    }

    /// The most workers of one watcher that have lines.
    fn workers(&self) -> usize {
        let workers = |lines: &BTreeMap<(i64, u64), Line>| {
            let mut numbers: Vec<u32> = lines.values().map(|line| line.wid).collect();
            numbers.sort_unstable();
            numbers.dedup();
            numbers.len()
        };
        self.lines.values().map(workers).max().unwrap_or(0)
    }

    fn lines(self) -> Vec<Line> {
        self.lines
            .into_values()
            .flat_map(BTreeMap::into_values)
            .collect()
    }
}

/// Reads `--since`.
///
/// # Errors
/// It is neither a duration nor a moment.
pub(crate) fn parse_since(text: &str) -> Result<DateTime<Utc>, String> {
    since::parse(text, Local::now())
}

#[cfg(test)]
mod tests {
    use papa_protocol::record::Stream;

    use super::*;

    fn line(watcher: &str, wid: u32, stamp_us: i64, text: &str) -> Line {
        Line {
            watcher: watcher.to_owned(),
            wid,
            pid: 7,
            stream: Stream::Out,
            stamp_us,
            text: text.as_bytes().to_vec(),
            kept: true,
        }
    }

    fn texts(kept: Kept) -> Vec<String> {
        let text = |line: Line| String::from_utf8(line.text).unwrap();
        kept.lines().into_iter().map(text).collect()
    }

    #[test]
    fn kept_lines_of_several_workers_are_put_in_order() {
        let mut kept = Kept::new(Wanted {
            lines: Some(3),
            since: None,
        });
        for (wid, stamp, text) in [
            (1, 10, "a"),
            (1, 30, "c"),
            (1, 40, "d"),
            (2, 20, "b"),
            (2, 40, "e"),
        ] {
            kept.add(line("web", wid, stamp, text));
        }
        kept.add(line("api", 1, 5, "x"));
        assert_eq!(kept.workers(), 2);
        assert_eq!(texts(kept), ["x", "c", "d", "e"]);
    }

    #[test]
    fn kept_lines_are_bounded_by_time_and_memory() {
        let mut kept = Kept::new(Wanted {
            lines: None,
            since: DateTime::from_timestamp_micros(20),
        });
        kept.add(line("web", 1, 19, "old"));
        let large = "x".repeat(MAX_KEPT_BYTES / 2);
        for stamp in 20..25 {
            kept.add(line("web", 1, stamp, &large));
        }
        assert!(kept.bytes <= MAX_KEPT_BYTES);
        assert_eq!(kept.lines().len(), 2);
    }
}
