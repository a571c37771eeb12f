//! What leads to a place: somebody writes, ends, is killed, is asked for something.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use nix::sys::signal::Signal;
use serde_json::json;

use crate::cell::{Bench, wait};
use crate::places::Drive;
use papa_harness::whole::{Life, RECOVERY, Role};
use papa_harness::{Json, procfs};

/// What the worker that is to end says.
pub(crate) const STATUS: i64 = 7;
/// Values set until the journal is rewritten: many times what that takes.
const VALUES: usize = 120;
/// Bytes of such a value.
const VALUE_BYTES: usize = 20_000;
/// Lines of a burst: more than a log file's limit.
const BURST_LINES: usize = 3000;

/// The path of a unix socket, below the scratch directory.
const SOCKET: &str = "matrix.sock";

impl Bench {
    /// Does what has to be done before the place can be reached at all.
    pub(crate) fn prepare(&mut self, drive: Drive) -> Result<Driven, String> {
        let mut driven = Driven::default();
        match drive {
            Drive::End | Drive::EndLeaving | Drive::EndAdopted | Drive::EndOrphaned => {
                self.prepare_parent(drive)?;
            }
            Drive::SaveRetried => {
                let mortal = self.mortal()?;
                let standing = self.stop_at("save.refused", |bench| bench.end_unsaved(&mortal));
                driven.standing = Some(standing?);
                driven.ending = Some(mortal);
            }
            Drive::CutResumed | Drive::CutKilled => {
                let standing = self.stop_at("log.cut_noted", |bench| {
                    driven.asked = Some(bench.cut_write()?);
                    Ok(())
                });
                driven.standing = Some(standing?);
            }
            _ => {}
        }
        Ok(driven)
    }

    /// Has the manager stop itself at a place which this leads to; answers its pid.
    fn stop_at(
        &mut self,
        place: &'static str,
        lead: impl FnOnce(&mut Self) -> Result<(), String>,
    ) -> Result<i32, String> {
        self.failpoints.arm(place, 1, &Role::Manager.to_string());
        lead(self)?;
        let hit = self.wait_hit(place)?;
        self.failpoints.clear();
        Ok(hit.pid)
    }

    /// Has the disk become full in the middle of one of the manager's writes.
    fn cut_write(&mut self) -> Result<JoinHandle<()>, String> {
        self.failpoints.arm("log.full", 1, "manager");
        self.burst("out")
    }

    /// Ends a worker, and has the kernel refuse to keep what follows from that, once.
    fn end_unsaved(&mut self, mortal: &Life) -> Result<(), String> {
        self.failpoints.arm("value.full", 1, "kernel");
        self.end(mortal)
    }

    /// The worker that is to end writes a burst, by and by.
    fn burst(&self, stream: &str) -> Result<JoinHandle<()>, String> {
        let directory = self.whole.kernel.directory().to_owned();
        let order = format!("burst {stream} {BURST_LINES} 80 0");
        let mortal = self.mortal()?;
        Ok(std::thread::spawn(move || {
            let _ = mortal.order(&directory, &order);
        }))
    }

    /// Has the worker that is to end be the child of whom it must be.
    fn prepare_parent(&mut self, drive: Drive) -> Result<(), String> {
        let mortal = self.mortal()?;
        let parent = procfs::stat(mortal.pid).map(|stat| stat.parent);
        let is = |role| parent == Some(self.whole.pid(role));
        let (own, adopted) = (is(Role::Kernel), is(Role::Keeper));
        let right = match drive {
            Drive::EndAdopted => adopted,
            Drive::EndOrphaned => !own && !adopted,
            _ => own,
        };
        if right {
            return Ok(());
        }
        if !own {
            self.end(&mortal)?;
            self.wait_successor(&mortal)?;
            self.whole.restore()?;
        }
        // Whoever it is the child of from now on.
        let deaths: &[Role] = match drive {
            Drive::EndAdopted => &[Role::Kernel],
            Drive::EndOrphaned => &[Role::Kernel, Role::Keeper],
            _ => &[],
        };
        for role in deaths {
            self.die(*role)?;
        }
        Ok(())
    }

    /// Kills one and waits for its successor.
    fn die(&mut self, role: Role) -> Result<(), String> {
        let before = self.whole.pid(role);
        self.whole.kill(role);
        wait(&format!("the {role} has ended"), || {
            (!procfs::alive(before)).then_some(())
        })?;
        self.whole.restore()
    }

    fn mortal(&self) -> Result<Life, String> {
        let mut living = self.whole.living("mortal");
        living.retain(Life::is_there);
        living.pop().ok_or_else(|| "no mortal worker".to_owned())
    }

    fn end(&self, life: &Life) -> Result<(), String> {
        life.order(self.whole.kernel.directory(), &format!("exit {STATUS}"))
            .map(drop)
            .ok_or_else(|| format!("{} takes no orders", life.source()))
    }

    /// Does what has the place reached, or has it done by somebody who may have to wait.
    pub(crate) fn drive(&mut self, drive: Drive, driven: &mut Driven) -> Result<(), String> {
        match drive {
            // The second one has cells of its own.
            Drive::Write | Drive::BothDie => {}
            Drive::Burst => driven.asked = Some(self.burst("out")?),
            Drive::CutWrite => driven.asked = Some(self.cut_write()?),
            Drive::CutResumed | Drive::SaveRetried => {
                if let Some(manager) = driven.standing {
                    procfs::signal(manager, Signal::SIGCONT);
                }
            }
            Drive::End | Drive::EndLeaving | Drive::EndAdopted | Drive::EndOrphaned => {
                let mortal = self.mortal()?;
                if drive == Drive::EndLeaving {
                    mortal
                        .order(self.whole.kernel.directory(), "leave")
                        .ok_or_else(|| format!("{} takes no orders", mortal.source()))?;
                }
                self.end(&mortal)?;
                driven.ending = Some(mortal);
            }
            Drive::SaveRefused => {
                let mortal = self.mortal()?;
                self.end_unsaved(&mortal)?;
                driven.ending = Some(mortal);
            }
            Drive::Values => {
                let socket = self.whole.kernel.socket_path();
                driven.asked = Some(std::thread::spawn(move || set_values(&socket)));
            }
            Drive::KernelDies => self.whole.kill(Role::Kernel),
            Drive::ManagerDies | Drive::CutKilled => {
                let manager = self.whole.pid(Role::Manager);
                self.whole.kill(Role::Manager);
                // Gone is more than ended: its first thread may end before the others.
                wait("another manager is started", || {
                    let started = self.whole.start_manager();
                    let gone = procfs::stat(manager).is_none();
                    gone.then_some(started)
                })??;
            }
            Drive::KeeperDies => self.whole.kill(Role::Keeper),
            Drive::Upgrade | Drive::UpgradeBoth => {
                let socket = self.whole.kernel.socket_path();
                let request = json!({"keeper": drive == Drive::UpgradeBoth});
                driven.asked = Some(std::thread::spawn(move || {
                    let session = Json::unix(&socket);
                    let _ = session.map(|mut session| session.call("kernel.upgrade", request));
                }));
            }
            Drive::UpgradeManager => self.whole.signal(Role::Manager, Signal::SIGUSR2),
            Drive::PathGone => {
                let path = self.whole.kernel.directory().join(SOCKET);
                std::fs::remove_file(&path).map_err(|error| error.to_string())?;
                driven.lost = Some((path, self.whole.living("web")));
            }
            Drive::Reload => {
                let path = self.whole.kernel.runtime_dir().join("circus.manager.sock");
                driven.asked = Some(std::thread::spawn(move || reload(&path)));
            }
        }
        Ok(())
    }
}

/// What goes on because of a drive.
#[derive(Debug, Default)]
pub(crate) struct Driven {
    /// The worker that ends.
    pub(crate) ending: Option<Life>,
    /// Who waits for an answer.
    pub(crate) asked: Option<JoinHandle<()>>,
    /// Where a unix socket is to be again, and the workers that have the old one.
    pub(crate) lost: Option<(PathBuf, Vec<Life>)>,
    /// The manager that stands still until the place is armed.
    standing: Option<i32>,
}

/// Until the kernel is killed or all are set.
fn set_values(socket: &Path) {
    let Ok(mut session) = Json::unix(socket) else {
        return;
    };
    for number in 0..VALUES {
        let value = format!("{number}{}", "v".repeat(VALUE_BYTES));
        let request = json!({"name": "matrix.filler", "value": value});
        if !matches!(session.call("value.set", request), Ok(Ok(_))) {
            return;
        }
    }
}

/// Asks for a reload and waits for its answer, or for the end of the connection.
fn reload(socket: &Path) {
    let Ok(mut stream) = UnixStream::connect(socket) else {
        return;
    };
    let _ = stream.set_read_timeout(Some(RECOVERY));
    let request =
        json!({"id": 1, "command": "reload", "properties": {"name": "web", "waiting": true}});
    if writeln!(stream, "{request}").is_ok() {
        let _ = BufReader::new(stream).read_line(&mut String::new());
    }
}
