//! Keys that people bring along from other process managers, and what says the same here.
//!
//! Owns the names only. A key about privilege or about a limit is grave: whoever wrote it relies on
//! it, so a file with one that has no effect is refused instead of being run with more rights than
//! meant.
//! Source: the reference pages of supervisord 4, systemd.exec(5), systemd.service(5),
//! systemd.resource-control(5), pm2's ecosystem file, the Compose specification, process-compose,
//! init(5) of upstart, launchd.plist(5) and Kubernetes' security context.

/// A key of another program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Foreign {
    /// Lower case, without `_` and `-`; see [`find`].
    name: &'static str,
    /// Whose key it is.
    pub program: &'static str,
    /// What says the same here: keys, or a sentence.
    pub instead: &'static str,
    /// It is about privilege or a limit.
    pub grave: bool,
}

/// The foreign key called `name`, however its words are joined: `ExecStart`, `exec_start`.
#[must_use]
pub fn find(name: &str) -> Option<Foreign> {
    let plain: String = name
        .chars()
        .filter(|c| !matches!(c, '_' | '-'))
        .flat_map(char::to_lowercase)
        .collect();
    let found = FOREIGN.iter().find(|foreign| foreign.name == plain);
    let mut found = found.copied().or_else(|| limit(&plain))?;
    // Both have a user and an environment, and only systemd begins them with capitals.
    if found.program == SUPERVISORD && name.starts_with(char::is_uppercase) {
        found.program = SYSTEMD;
    }
    Some(found)
}

impl Foreign {
    /// What to do in its place, for people: `use uid`.
    #[must_use]
    pub fn advice(&self) -> String {
        match self.instead.strip_prefix("nothing: ") {
            Some(sentence) => sentence.to_owned(),
            None => format!("use {}", self.instead),
        }
    }
}

/// systemd's `LimitNOFILE` and the like, of which there are as many as there are limits.
fn limit(plain: &str) -> Option<Foreign> {
    let limit = plain.strip_prefix("limit")?;
    crate::scalar::RLIMIT_NAMES
        .contains(&limit)
        .then_some(Foreign {
            name: "",
            program: "systemd",
            instead: "rlimit_NAME, such as rlimit_nofile",
            grave: true,
        })
}

const fn hint(name: &'static str, program: &'static str, instead: &'static str) -> Foreign {
    Foreign {
        name,
        program,
        instead,
        grave: false,
    }
}

const fn grave(name: &'static str, program: &'static str, instead: &'static str) -> Foreign {
    Foreign {
        name,
        program,
        instead,
        grave: true,
    }
}

const SUPERVISORD: &str = "supervisord";
const SYSTEMD: &str = "systemd";
const PM2: &str = "pm2";
const COMPOSE: &str = "docker-compose";
const PROCESS_COMPOSE: &str = "process-compose";
const UPSTART: &str = "upstart";
const LAUNCHD: &str = "launchd";
const KUBERNETES: &str = "Kubernetes";

const ENV: &str = "a section [env:NAME] with NAME = VALUE lines";
const NO_SANDBOX: &str = "nothing: run the program through setpriv or bwrap";
const NO_CGROUP: &str = "nothing: run the program through systemd-run --scope, or use rlimit_NAME";

const FOREIGN: &[Foreign] = &[
    // Privilege.
    grave("user", SUPERVISORD, "uid"),
    grave("runas", SYSTEMD, "uid"),
    grave("group", SYSTEMD, "gid"),
    grave(
        "supplementarygroups",
        SYSTEMD,
        "uid, which brings the user's groups along",
    ),
    grave(
        "groupadd",
        COMPOSE,
        "uid, which brings the user's groups along",
    ),
    grave("umask", SYSTEMD, "umask"),
    grave("chroot", SYSTEMD, NO_SANDBOX),
    grave("rootdirectory", SYSTEMD, NO_SANDBOX),
    grave("dynamicuser", SYSTEMD, "uid"),
    grave("nonewprivileges", SYSTEMD, NO_SANDBOX),
    grave("privatetmp", SYSTEMD, NO_SANDBOX),
    grave("privatedevices", SYSTEMD, NO_SANDBOX),
    grave("privatenetwork", SYSTEMD, NO_SANDBOX),
    grave("protectsystem", SYSTEMD, NO_SANDBOX),
    grave("protecthome", SYSTEMD, NO_SANDBOX),
    grave("readonlypaths", SYSTEMD, NO_SANDBOX),
    grave("readwritepaths", SYSTEMD, NO_SANDBOX),
    grave("inaccessiblepaths", SYSTEMD, NO_SANDBOX),
    grave("capabilityboundingset", SYSTEMD, NO_SANDBOX),
    grave("ambientcapabilities", SYSTEMD, NO_SANDBOX),
    grave("systemcallfilter", SYSTEMD, NO_SANDBOX),
    grave("restrictaddressfamilies", SYSTEMD, NO_SANDBOX),
    grave("capadd", COMPOSE, NO_SANDBOX),
    grave("capdrop", COMPOSE, NO_SANDBOX),
    grave("privileged", COMPOSE, NO_SANDBOX),
    grave("securityopt", COMPOSE, NO_SANDBOX),
    grave("readonly", COMPOSE, NO_SANDBOX),
    grave("usernsmode", COMPOSE, NO_SANDBOX),
    grave("protectkerneltunables", SYSTEMD, NO_SANDBOX),
    grave("protectkernelmodules", SYSTEMD, NO_SANDBOX),
    grave("protectcontrolgroups", SYSTEMD, NO_SANDBOX),
    grave("protectproc", SYSTEMD, NO_SANDBOX),
    grave("restrictnamespaces", SYSTEMD, NO_SANDBOX),
    grave("restrictsuidsgid", SYSTEMD, NO_SANDBOX),
    grave("restrictrealtime", SYSTEMD, NO_SANDBOX),
    grave("memorydenywriteexecute", SYSTEMD, NO_SANDBOX),
    grave("lockpersonality", SYSTEMD, NO_SANDBOX),
    grave("privateusers", SYSTEMD, NO_SANDBOX),
    grave("securebits", SYSTEMD, NO_SANDBOX),
    grave("noexecpaths", SYSTEMD, NO_SANDBOX),
    grave("bindreadonlypaths", SYSTEMD, NO_SANDBOX),
    grave("rootimage", SYSTEMD, NO_SANDBOX),
    grave("setuid", UPSTART, "uid"),
    grave("setgid", UPSTART, "gid"),
    grave("username", LAUNCHD, "uid"),
    grave("groupname", LAUNCHD, "gid"),
    grave(
        "initgroups",
        LAUNCHD,
        "uid, which brings the user's groups along",
    ),
    grave("runasuser", KUBERNETES, "uid"),
    grave("runasgroup", KUBERNETES, "gid"),
    grave("runasnonroot", KUBERNETES, "uid"),
    grave("allowprivilegeescalation", KUBERNETES, NO_SANDBOX),
    grave("readonlyrootfilesystem", KUBERNETES, NO_SANDBOX),
    grave("capabilities", SYSTEMD, NO_SANDBOX),
    grave("apparmorprofile", SYSTEMD, NO_SANDBOX),
    grave("selinuxcontext", SYSTEMD, NO_SANDBOX),
    grave("temporaryfilesystem", SYSTEMD, NO_SANDBOX),
    grave("bindpaths", SYSTEMD, NO_SANDBOX),
    grave("networknamespacepath", SYSTEMD, NO_SANDBOX),
    grave("seccompprofile", KUBERNETES, NO_SANDBOX),
    grave(
        "fsgroup",
        KUBERNETES,
        "uid, which brings the user's groups along",
    ),
    grave(
        "supplementalgroups",
        KUBERNETES,
        "uid, which brings the user's groups along",
    ),
    // Limits.
    grave("limits", COMPOSE, NO_CGROUP),
    grave("cgroup", COMPOSE, NO_CGROUP),
    grave("cgroupparent", COMPOSE, NO_CGROUP),
    grave("slice", SYSTEMD, NO_CGROUP),
    grave("memory", COMPOSE, NO_CGROUP),
    grave("memreservation", COMPOSE, NO_CGROUP),
    grave("cpushares", COMPOSE, NO_CGROUP),
    grave("cpuweight", SYSTEMD, NO_CGROUP),
    grave("ioweight", SYSTEMD, NO_CGROUP),
    grave("cpuaffinity", SYSTEMD, "cmd = taskset -c LIST PROGRAM"),
    grave(
        "cpuschedulingpolicy",
        SYSTEMD,
        "cmd = chrt OPTION N PROGRAM",
    ),
    grave(
        "ioschedulingclass",
        SYSTEMD,
        "cmd = ionice -c CLASS PROGRAM",
    ),
    grave("nice", SYSTEMD, "cmd = nice -n N PROGRAM"),
    grave("oomscoreadjust", SYSTEMD, "cmd = choom -n N -- PROGRAM"),
    grave("oomscoreadj", COMPOSE, "cmd = choom -n N -- PROGRAM"),
    grave("oomscore", UPSTART, "cmd = choom -n N -- PROGRAM"),
    grave("memswaplimit", COMPOSE, NO_CGROUP),
    grave("cpuset", COMPOSE, NO_CGROUP),
    grave("memoryswapmax", SYSTEMD, NO_CGROUP),
    grave("allowedcpus", SYSTEMD, NO_CGROUP),
    grave(
        "hardresourcelimits",
        LAUNCHD,
        "rlimit_NAME, such as rlimit_nofile",
    ),
    grave(
        "softresourcelimits",
        LAUNCHD,
        "rlimit_NAME, such as rlimit_nofile",
    ),
    grave("minfds", SUPERVISORD, "rlimit_nofile"),
    grave("minprocs", SUPERVISORD, "rlimit_nproc"),
    grave("ulimits", COMPOSE, "rlimit_NAME, such as rlimit_nofile"),
    grave("ulimit", COMPOSE, "rlimit_NAME, such as rlimit_nofile"),
    grave(
        "maxmemoryrestart",
        PM2,
        "rlimit_as, which makes allocations fail",
    ),
    grave("memlimit", COMPOSE, NO_CGROUP),
    grave("cpus", COMPOSE, NO_CGROUP),
    grave("pidslimit", COMPOSE, NO_CGROUP),
    grave("memorymax", SYSTEMD, NO_CGROUP),
    grave("memoryhigh", SYSTEMD, NO_CGROUP),
    grave("memorylimit", SYSTEMD, NO_CGROUP),
    grave("cpuquota", SYSTEMD, NO_CGROUP),
    grave("tasksmax", SYSTEMD, NO_CGROUP),
    // supervisord.
    hint("command", SUPERVISORD, "cmd"),
    hint("directory", SUPERVISORD, "working_dir"),
    hint(
        "processname",
        SUPERVISORD,
        "name, and $(circus.wid) for the number",
    ),
    hint("numprocs", SUPERVISORD, "numprocesses"),
    hint(
        "numprocsstart",
        SUPERVISORD,
        "$(circus.wid) in cmd, which begins at 1",
    ),
    hint("autorestart", SUPERVISORD, "respawn"),
    hint(
        "startsecs",
        SUPERVISORD,
        "ready = delay:SECONDS, or backoff_reset",
    ),
    hint(
        "startretries",
        SUPERVISORD,
        "max_retry, or flapping.max_retry",
    ),
    hint(
        "exitcodes",
        SUPERVISORD,
        "respawn, which holds for every exit code",
    ),
    hint("stopsignal", SUPERVISORD, "stop_signal"),
    hint("stopwaitsecs", SUPERVISORD, "graceful_timeout"),
    hint("stopasgroup", SUPERVISORD, "stop_children"),
    hint(
        "killasgroup",
        SUPERVISORD,
        "nothing: everything a worker started is killed",
    ),
    hint(
        "redirectstderr",
        SUPERVISORD,
        "stderr_stream.filename with the file of stdout_stream",
    ),
    hint("stdoutlogfile", SUPERVISORD, "stdout_stream.filename"),
    hint("stderrlogfile", SUPERVISORD, "stderr_stream.filename"),
    hint(
        "stdoutlogfilemaxbytes",
        SUPERVISORD,
        "stdout_stream.max_bytes",
    ),
    hint(
        "stderrlogfilemaxbytes",
        SUPERVISORD,
        "stderr_stream.max_bytes",
    ),
    hint(
        "stdoutlogfilebackups",
        SUPERVISORD,
        "stdout_stream.backup_count",
    ),
    hint(
        "stderrlogfilebackups",
        SUPERVISORD,
        "stderr_stream.backup_count",
    ),
    hint("stdoutsyslog", SUPERVISORD, "stdout_stream.class = syslog"),
    hint("stderrsyslog", SUPERVISORD, "stderr_stream.class = syslog"),
    hint("environment", SUPERVISORD, ENV),
    hint(
        "logfile",
        SUPERVISORD,
        "stdout_stream.filename, or logoutput in [circus]",
    ),
    hint("nodaemon", SUPERVISORD, "papactl up --foreground"),
    // systemd.
    hint("execstart", SYSTEMD, "cmd"),
    hint(
        "execstartpre",
        SYSTEMD,
        "a command in cmd with shell = true",
    ),
    hint(
        "execreload",
        SYSTEMD,
        "send_hup, or papactl reload, which replaces the workers",
    ),
    hint("execstop", SYSTEMD, "stop_signal"),
    hint("workingdirectory", SYSTEMD, "working_dir"),
    hint("environmentfile", SYSTEMD, ENV),
    hint("restart", SYSTEMD, "respawn"),
    hint("restartsec", SYSTEMD, "backoff_first and backoff_max"),
    hint("timeoutstopsec", SYSTEMD, "graceful_timeout"),
    hint("timeoutstartsec", SYSTEMD, "ready_timeout"),
    hint("killsignal", SYSTEMD, "stop_signal"),
    hint("killmode", SYSTEMD, "stop_children"),
    hint("watchdogsec", SYSTEMD, "health and health_interval"),
    hint("standardoutput", SYSTEMD, "stdout_stream.filename"),
    hint("standarderror", SYSTEMD, "stderr_stream.filename"),
    hint("startlimitburst", SYSTEMD, "flapping.attempts"),
    hint("startlimitintervalsec", SYSTEMD, "flapping.window"),
    hint("startlimitinterval", SYSTEMD, "flapping.window"),
    hint("requires", SYSTEMD, "depends_on"),
    hint("after", SYSTEMD, "depends_on"),
    // pm2.
    hint("script", PM2, "cmd"),
    hint("interpreter", PM2, "cmd, with the interpreter first"),
    hint("instances", PM2, "numprocesses"),
    hint("cwd", PM2, "working_dir"),
    hint("minuptime", PM2, "backoff_reset"),
    hint(
        "maxrestarts",
        PM2,
        "flapping.attempts and flapping.max_retry",
    ),
    hint("restartdelay", PM2, "backoff_first"),
    hint("expbackoffrestartdelay", PM2, "backoff_first"),
    hint("killtimeout", PM2, "graceful_timeout, in seconds"),
    hint("waitready", PM2, "ready"),
    hint("listentimeout", PM2, "ready_timeout, in seconds"),
    hint("outfile", PM2, "stdout_stream.filename"),
    hint("errorfile", PM2, "stderr_stream.filename"),
    hint("logdateformat", PM2, "stdout_stream.time_format"),
    hint("execmode", PM2, "numprocesses"),
    hint("cronrestart", PM2, "max_age"),
    hint("watch", PM2, "papactl reload, after a change"),
    // docker-compose.
    hint("entrypoint", COMPOSE, "cmd"),
    hint("envfile", COMPOSE, ENV),
    hint("ports", COMPOSE, "a section [socket:NAME] and use_sockets"),
    hint("stopgraceperiod", COMPOSE, "graceful_timeout, in seconds"),
    hint("healthcheck", COMPOSE, "health"),
    hint("replicas", COMPOSE, "numprocesses"),
    hint("scale", COMPOSE, "numprocesses"),
    // process-compose.
    hint("readinessprobe", PROCESS_COMPOSE, "ready"),
    hint("livenessprobe", PROCESS_COMPOSE, "health"),
    hint("loglocation", PROCESS_COMPOSE, "stdout_stream.filename"),
    hint("availability.restart", PROCESS_COMPOSE, "respawn"),
    hint("availability", PROCESS_COMPOSE, "respawn"),
    hint(
        "shutdown",
        PROCESS_COMPOSE,
        "stop_signal and graceful_timeout",
    ),
    hint("shutdown.signal", PROCESS_COMPOSE, "stop_signal"),
    hint(
        "shutdown.timeoutseconds",
        PROCESS_COMPOSE,
        "graceful_timeout",
    ),
    hint(
        "isdaemon",
        PROCESS_COMPOSE,
        "a program that stays in the foreground",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::known;

    #[test]
    fn foreign_names_are_found_however_they_are_written() {
        for (name, instead, grave) in [
            ("command", "cmd", false),
            ("ExecStart", "cmd", false),
            ("User", "uid", true),
            ("stdout_logfile", "stdout_stream.filename", false),
            ("stop-grace-period", "graceful_timeout, in seconds", false),
            ("LimitNOFILE", "rlimit_NAME, such as rlimit_nofile", true),
        ] {
            let found = find(name).unwrap_or_else(|| panic!("{name}"));
            assert_eq!((found.instead, found.grave), (instead, grave), "{name}");
        }
        assert_eq!(find("User").unwrap().program, SYSTEMD);
        assert_eq!(find("user").unwrap().program, SUPERVISORD);
        assert_eq!(
            find("chroot").unwrap().advice(),
            "run the program through setpriv or bwrap"
        );
        assert_eq!(find("user").unwrap().advice(), "use uid");
        assert_eq!(find("active"), None);
        assert_eq!(find("limit"), None);
    }

    #[test]
    fn keys_about_whom_a_program_runs_as_are_mistakes_whoever_has_them() {
        for name in [
            "user",
            "Group",
            "setuid",
            "setgid",
            "UserName",
            "GroupName",
            "InitGroups",
            "runAsUser",
            "runAsGroup",
            "run_as_non_root",
            "DynamicUser",
            "RestrictSUIDSGID",
            "allowPrivilegeEscalation",
            "HardResourceLimits",
            "capabilities",
            "limits",
            "cgroup",
            "nice",
            "OOMScoreAdjust",
        ] {
            let found = find(name).unwrap_or_else(|| panic!("{name}"));
            assert!(found.grave, "{name}");
        }
    }

    #[test]
    fn no_key_of_ours_counts_as_foreign_and_what_is_advised_exists() {
        for (index, foreign) in FOREIGN.iter().enumerate() {
            let name = foreign.name;
            assert!(known::find(known::WATCHER, name).is_none() || name == "umask");
            assert!(
                FOREIGN[..index].iter().all(|other| other.name != name),
                "{name}"
            );
            let first = foreign.instead.split([' ', ',']).next().unwrap();
            if first.contains('_') && !first.starts_with("rlimit_") {
                assert!(known::is_watcher_key(first), "{first}");
            }
        }
        assert!(FOREIGN.len() > 80);
    }
}
