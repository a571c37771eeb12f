//! Acts that leave little room: sessions that say nothing, limits on files, and no descriptors.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::Soak;
use papa_harness::procfs;
use papa_harness::whole::{RECOVERY, Role};

/// More processes than such a kernel can have.
const TOO_MANY: usize = 400;

/// Listeners that read nothing; fewer than the manager takes.
const DEAF_LISTENERS: usize = 40;

impl Soak {
    /// Opens listeners that read nothing of what they are told.
    pub(super) fn deaf_listeners(&mut self) -> Result<(), String> {
        self.whole.restore()?;
        let path = self.whole.kernel.runtime_dir().join("circus.manager.sock");
        for number in 0..DEAF_LISTENERS {
            let Ok(mut stream) = UnixStream::connect(&path) else {
                return Err(format!("the manager takes no more than {number} listeners"));
            };
            let request = json!({"id": 1, "command": "listen", "properties": {"waiting": true}});
            for _ in 0..2 {
                // One that was closed for others is closed.
                let _ = writeln!(stream, "{request}");
            }
            self.idle.push(stream);
        }
        Ok(())
    }

    /// Has the files that keeper and kernel, or the manager, write become no larger than this; with
    /// none, as large as they like.
    pub(super) fn limit_files(&self, role: Role, bytes: Option<u64>) {
        let limit = bytes.map_or("unlimited".to_owned(), |bytes| bytes.to_string());
        let roles = match role {
            Role::Manager => vec![Role::Manager],
            // Each may be what the other is later.
            Role::Kernel | Role::Keeper => vec![Role::Keeper, Role::Kernel],
        };
        for role in roles {
            let _ = Command::new("prlimit")
                .args(["--pid", &self.whole.pid(role).to_string()])
                .arg(format!("--fsize={limit}:unlimited"))
                .stderr(Stdio::null())
                .status();
        }
    }

    pub(super) fn low_limit(&mut self, role: Role, bytes: u64) -> Result<(), String> {
        self.whole.restore()?;
        if role == Role::Kernel {
            if self.runs_other() {
                // An older one does not know what to do about it.
                return Ok(());
            }
            self.rings = true;
        }
        self.limit_files(role, Some(bytes));
        self.limited.push(role);
        Ok(())
    }

    /// Takes all descriptors there are, and gives them back.
    pub(super) fn exhaust(&mut self) -> Result<(), String> {
        if !self.few_descriptors {
            return Ok(());
        }
        self.whole.restore()?;
        self.join()?;
        let mut session = self.whole.kernel.json();
        let mut made: Vec<Value> = Vec::new();
        let mut refused = None;
        while made.len() < TOO_MANY && refused.is_none() {
            let name = format!("many.{}", made.len());
            let fields = json!({"name": name, "argv": ["sleep", "1000"], "env_inherit": true});
            match session.call("process.make", fields) {
                Ok(Ok(reply)) => made.push(reply["process"].clone()),
                Ok(Err(error)) => refused = Some(error),
                Err(error) => return Err(format!("after {} processes: {error}", made.len())),
            }
        }
        let Some(refused) = refused else {
            return Err(format!("{TOO_MANY} processes were made"));
        };
        println!("  refused after {}: {refused}", made.len());
        for process in &made {
            let pid = i32::try_from(process["pid"].as_i64().unwrap_or_default());
            procfs::signal(pid.unwrap_or_default(), Signal::SIGKILL);
        }
        let begun = Instant::now();
        let mut left = usize::MAX;
        while left > 0 && begun.elapsed() < RECOVERY {
            let _ = session.call(
                "process.remove",
                json!({"names": ["many.*"], "force": true}),
            );
            let listed = session.call("process.list", json!({"names": ["many.*"]}));
            left = listed
                .ok()
                .and_then(Result::ok)
                .and_then(|listed| listed["processes"].as_array().map(Vec::len))
                .unwrap_or(usize::MAX);
            std::thread::sleep(Duration::from_millis(20));
        }
        if left > 0 {
            return Err(format!("{left} processes are still listed"));
        }
        Ok(())
    }
}
