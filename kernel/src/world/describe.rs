//! Processes as they are listed.

use papa_protocol::limits::REEL_BYTES;
use papa_protocol::process::Process;
use papa_protocol::record::Serial;

use super::World;
use super::live::Live;
use super::reel::Reel;
use crate::sys::errno::words;

impl World {
    /// A process as it is listed; none if there is no process of that number.
    pub(crate) fn describe(&self, serial: u64) -> Option<Process> {
        let row = self.table.process(serial)?;
        let live = self.live.get(&serial);
        Some(Process {
            serial: Serial(serial),
            name: row.make.name.clone(),
            pid: row.pid,
            running: row.exit.is_none(),
            started_us: row.started_us,
            argv: row.make.argv.clone(),
            shell: row.make.shell,
            uid: row.uid,
            gid: row.gid,
            working_dir: row.make.working_dir.clone(),
            tag: row.make.tag.clone(),
            exit: row.exit.clone(),
            ends: live.map(|live| live.ends).unwrap_or_default(),
            ledger: live.map(Live::ledger).unwrap_or_default(),
            overflow: row.make.overflow,
            reel_bytes: live.and_then(|live| live.reel.as_ref()).map_or(
                row.make.reel_bytes.map_or(REEL_BYTES, |size| size.0),
                Reel::limit,
            ),
            consumer: live.is_some_and(|live| live.consumer.is_some()),
            trouble: live
                .and_then(|live| live.trouble)
                .map(|errno| format!("its output cannot be stored: {}", words(errno))),
        })
    }
}
