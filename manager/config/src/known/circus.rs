//! `[circus]`, `[plugin:NAME]` and the options of the flapping plugin.

use super::key::{self, Form, Key, MAX_WHOLE, OnChange};
use super::{BYTES, Inactive, MASK, NEVER_READ, NOT_YET, Needless, PATH, TEXT, ZMQ};
use crate::scalar;
use crate::types::{Config, DEFAULT_NAMESPACE};
use crate::values::circus;

type Section = Config;

/// Keys of `[circus]`. `debug` comes behind `loglevel`, which it overrides.
pub const CIRCUS: &[Key<Config>] = &[
    optional!(
        "papa_endpoint",
        Form::Text("`ipc:/path`, `/path`, `@abstract` or `tcp://host:port`"),
        kernel,
        circus::kernel_endpoint,
        ToString::to_string
    )
    .change(OnChange::Restart)
    .without("the usual places")
    .meaning("the kernel to use")
    .example("ipc:/run/papa/20202.sock"),
    value!(
        "namespace",
        Form::Text("letters, digits, `_`, `-`"),
        namespace,
        circus::namespace,
        Clone::clone
    )
    .change(OnChange::Restart)
    .default(DEFAULT_NAMESPACE)
    .meaning(
        "first part of every name in the kernel; two managers on one kernel need two \
         (not in Circus)",
    )
    .example("staging"),
    seconds!("warmup_delay", warmup_delay)
        .default("0")
        .meaning("pause after starting each watcher")
        .example("0.5"),
    Key::new("umask", MASK)
        .read(|config: &mut Section, written| {
            config.umask = Some(scalar::octal_mask(written.text)?);
            Ok(())
        })
        .or_blank()
        .change(OnChange::Roll)
        .without("that of who ran `up`")
        .meaning("file mode mask of every worker whose watcher has none")
        .example("027"),
    Key::new(
        "include",
        Form::Text("file patterns, separated by white space"),
    )
    .change(OnChange::Never)
    .meaning("more files, read after this one; relative to it")
    .example("conf.d/*.ini"),
    Key::new(
        "include_dir",
        Form::Text("directory patterns, separated by white space"),
    )
    .change(OnChange::Never)
    .meaning("directories whose `*.ini` are read like `include`")
    .example("conf.d"),
    value!(
        "loglevel",
        Form::Text("`critical`, `error`, `warning`, `info` or `debug`"),
        log_level,
        circus::log_level,
        Clone::clone
    )
    .change(OnChange::Restart)
    .default("info")
    .meaning("what the manager itself logs")
    .example("debug"),
    Key::new("debug", Form::YesNo)
        .read(|config: &mut Section, written| {
            if scalar::boolean(written.text)? {
                config.log_level = "debug".to_owned();
            }
            Ok(())
        })
        .change(OnChange::Restart)
        .default("no")
        .meaning("the same as `loglevel = debug`")
        .example("yes"),
    Key::new(
        "logoutput",
        Form::Text("path, `-`, or `syslog://host[:port]?facility`"),
    )
    .field(
        |config: &mut Section, written| {
            config.log_output = circus::log_output(written.text, written.directory)?;
            Ok(())
        },
        |config| {
            Some(
                config
                    .log_output
                    .as_ref()
                    .map_or(String::new(), circus::log_output_text),
            )
        },
    )
    .or_blank()
    .change(OnChange::Restart)
    .without("standard error")
    .meaning("where the manager's own log goes; `--log-file` wins")
    .example("/var/log/papa-manager.log"),
    Key::new("logoutput_max_bytes", BYTES)
        .field(
            |config: &mut Section, written| {
                config.log_max_bytes = key::to_number(written.text, 0, i64::MAX)?;
                Ok(())
            },
            |config| Some(config.log_max_bytes.to_string()),
        )
        .change(OnChange::Restart)
        .default("4194304")
        .meaning(
            "put a log file of the manager's own aside as FILE.1 when it is this large, \
             the one `papactl up` gives it too; 0: never (not in Circus)",
        )
        .example("10000000"),
    path!("pidfile", pidfile)
        .change(OnChange::Restart)
        .meaning(
            "the manager writes its pid there; refused while another living manager is \
             named in it",
        )
        .example("/run/papa-manager.pid"),
    Key::new("circus_warnings", Form::YesNo)
        .change(OnChange::Never)
        .default("yes")
        .meaning(
            "no: say nothing of keys without effect here and of values that mean something \
             else than in Circus (not in Circus)",
        )
        .example("no"),
    Key::inert("check_delay", Form::Seconds, Needless)
        .read(|_: &mut Section, written| circus::check_delay(written.text).map(drop))
        .meaning("Circus's period of looking after its processes; exits are noticed at once")
        .example("5"),
    Key::inert("endpoint", TEXT, Inactive(ZMQ))
        .meaning("Circus's control address")
        .example("tcp://127.0.0.1:5555"),
    Key::inert("endpoint_owner", TEXT, Inactive(ZMQ))
        .meaning("owner of that address")
        .example("www-data"),
    Key::inert("pubsub_endpoint", TEXT, Inactive(ZMQ))
        .meaning("Circus's event address")
        .example("tcp://127.0.0.1:5556"),
    Key::inert("multicast_endpoint", TEXT, Inactive(ZMQ))
        .meaning("Circus's discovery by multicast")
        .example("udp://237.219.251.97:12027"),
    Key::inert(
        "stats_endpoint",
        TEXT,
        Inactive("is accepted but not active: `papactl stats` asks the manager itself"),
    )
    .meaning("Circus's address of statistics")
    .example("tcp://127.0.0.1:5557"),
    Key::inert(
        "statsd",
        Form::YesNo,
        Inactive("is accepted but not active: `papactl stats` asks the manager itself"),
    )
    .read(|_: &mut Section, written| scalar::boolean(written.text).map(drop))
    .meaning("Circus's process of statistics")
    .example("yes"),
    Key::inert(
        "httpd",
        Form::YesNo,
        Inactive("is accepted but not active: there is no web page"),
    )
    .read(|_: &mut Section, written| scalar::boolean(written.text).map(drop))
    .meaning("Circus's web page")
    .example("no"),
    Key::inert(
        "httpd_host",
        TEXT,
        Inactive("is accepted but not active: there is no web page"),
    )
    .meaning("host of the web page")
    .example("localhost"),
    Key::inert(
        "httpd_port",
        Form::Number(0, 65535),
        Inactive("is accepted but not active: there is no web page"),
    )
    .read(|_: &mut Section, written| scalar::whole(written.text, 0, 65535).map(drop))
    .meaning("port of the web page")
    .example("8080"),
    Key::inert(
        "loggerconfig",
        PATH,
        Inactive("is accepted but not active: it configures Python; use loglevel and logoutput"),
    )
    .meaning("a configuration of Python's logging")
    .example("logging.ini"),
    Key::inert("debug_gc", Form::YesNo, Inactive(NEVER_READ))
        .read(|_: &mut Section, written| scalar::boolean(written.text).map(drop))
        .meaning("debugging of Python's garbage collector")
        .example("no"),
    Key::inert("fqdn_prefix", TEXT, Inactive(NEVER_READ))
        .meaning("a name nobody reads")
        .example("web1"),
    Key::inert("statsd_close_outputs", Form::YesNo, Inactive(NEVER_READ))
        .meaning("documented by Circus")
        .example("no"),
    Key::inert("httpd_close_outputs", Form::YesNo, Inactive(NEVER_READ))
        .meaning("documented by Circus")
        .example("no"),
    Key::inert("stream_backend", TEXT, Inactive(NEVER_READ))
        .meaning("documented by Circus")
        .example("thread"),
    Key::inert("ssh_server", TEXT, Inactive(NEVER_READ))
        .meaning("documented by Circus")
        .example("localhost"),
    Key::inert("proc_name", TEXT, Inactive(NEVER_READ))
        .meaning("documented by Circus")
        .example("circusd"),
];

/// Keys of `[plugin:NAME]` besides the plugin's own.
pub const PLUGIN: &[Key<()>] = &[
    Key::new("use", Form::Text("dotted Python class"))
        .change(OnChange::Never)
        .without("required")
        .meaning(
            "which plugin; `circus.plugins.flapping.Flapping` is built in, others are not \
             yet active",
        )
        .example("circus.plugins.flapping.Flapping"),
    Key::new("active", Form::YesNo)
        .change(OnChange::Never)
        .default("yes")
        .meaning("no: as if the section were not there")
        .example("no"),
    Key::inert("priority", Form::Number(0, MAX_WHOLE), Inactive(NOT_YET))
        .meaning("order of Circus's plugins")
        .example("1"),
];
