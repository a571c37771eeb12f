//! Acts on programs and the configuration: upgrades, reloads, and files that change.

use std::fs;

use serde_json::{Value, json};

use super::{Soak, sections};
use crate::action::{Bad, Program};
use papa_harness::binary;

/// Processes of a client's own at one time.
const MAX_SIDE: usize = 4;

impl Soak {
    /// Whether the kernel runs the older program.
    pub(super) fn runs_other(&mut self) -> bool {
        let now = self.whole.kernel.status();
        let now = format!("/proc/{}/exe", now["pid"]);
        fs::read_link(now).is_ok_and(|path| path == self.copy)
    }

    pub(super) fn make(&mut self) {
        if self.whole.living_like("side").len() >= MAX_SIDE {
            return;
        }
        self.made += 1;
        let name = format!("side{}", self.made);
        let argv = self.whole.worker_argv(&name);
        let fields = json!({"name": format!("side.{name}"), "argv": argv, "env_inherit": true});
        self.whole.kernel.json().ok("process.make", fields);
    }

    pub(super) fn upgrade_kernel(&mut self, program: Program) -> Result<(), String> {
        let runs_other = self.runs_other();
        let other = if runs_other {
            binary("papa")
        } else {
            self.copy.clone()
        };
        let other = other.to_str().unwrap();
        let (fields, good) = match program {
            Program::Signal | Program::Other => (json!({"binary": other}), true),
            Program::WithKeeper => (json!({"binary": other, "keeper": true}), true),
            Program::Bad => (json!({"binary": "/bin/false"}), false),
            Program::BadForced => (json!({"binary": "/bin/false", "force": true}), false),
        };
        let answer = self.whole.kernel.json().call("kernel.upgrade", fields);
        let answer = answer.map_err(|error| format!("the requester was not answered: {error}"))?;
        let unreadable = |error: &Value| error.to_string().contains("cannot read the output of");
        let refused = self.rings && answer.as_ref().is_err_and(unreadable);
        if answer.is_ok() != good && !refused {
            return Err(format!("answered was {answer:?}"));
        }
        self.whole.wait_roles()
    }

    pub(super) fn upgrade_manager(&mut self) -> Result<(), String> {
        self.whole.restore()?;
        self.whole.manager_was_disturbed();
        let output = self.whole.papactl(&["upgrade"]).output();
        let output = output.map_err(|error| error.to_string())?;
        if output.status.success() {
            return Ok(());
        }
        Err(format!(
            "papactl upgrade: {}",
            String::from_utf8_lossy(&output.stderr)
        ))
    }

    pub(super) fn reload(&mut self, terminate: bool) {
        let mut command = self.whole.papactl(&["reload", "web"]);
        if terminate {
            command.arg("--terminate");
        }
        // It fails when the manager is killed or gone; what it did until then, and what its
        // successor makes of it, is checked all the same.
        self.beside(move || {
            let _ = command.output();
            None
        });
    }

    pub(super) fn configure(
        &mut self,
        crowd: u64,
        generation: u64,
        extra: bool,
    ) -> Result<(), String> {
        self.whole.restore()?;
        let sections = sections(crowd, generation, extra, &self.disk_path);
        let ini = format!("{}\n{sections}", self.base);
        self.whole.write_ini(&ini);
        let output = self
            .whole
            .papactl(&["reloadconfig", "--accept-removal"])
            .output();
        let output = output.map_err(|error| error.to_string())?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        // Another reload that is under way may be in its place.
        if output.status.success() || said.contains("later request") {
            Ok(())
        } else {
            Err(format!("papactl reloadconfig: {said}"))
        }
    }

    /// A file that is to be refused, and changes nothing.
    pub(super) fn bad_file(&mut self, bad: Bad) -> Result<(), String> {
        self.whole.restore()?;
        let good = self.whole.ini().to_owned();
        let text = match bad {
            Bad::Empty => String::new(),
            Bad::Include => format!("[circus]\ninclude = DIR/gone.ini\n{good}"),
            Bad::Mistake => good.replacen("ready = notify", "ready = when it likes", 1),
            Bad::Removal => "[watcher:extra]\ncmd = WORKER extra\ncopy_env = true\n".to_owned(),
        };
        self.whole.write_ini(&text);
        let output = self.whole.papactl(&["reloadconfig"]).output();
        self.whole.write_ini(&good);
        let output = output.map_err(|error| error.to_string())?;
        if output.status.success() {
            return Err(format!("papactl reloadconfig took it: {output:?}"));
        }
        Ok(())
    }

    pub(super) fn count(&mut self, verb: &str, by: u64) {
        let mut command = self
            .whole
            .papactl(&[verb, "crowd", &by.to_string(), "--no-wait"]);
        let _ = command.output();
    }
}
